"""A subscriber by libzmq: prints "port N" where it is bound, then every message as one JSON line, until its standard input ends.

usage: zmqsub.py bind | zmqsub.py connect PORT
The TLV decoder is written from nDPI's description, not from ours."""
import json, struct, sys, threading, zmq

context = zmq.Context()
socket = context.socket(zmq.SUB)
socket.setsockopt(zmq.HEARTBEAT_IVL, 200)
socket.setsockopt(zmq.LINGER, 0)
if sys.argv[1] == "bind":
    print("port", socket.bind_to_random_port("tcp://127.0.0.1"), flush=True)
else:
    socket.connect("tcp://127.0.0.1:" + sys.argv[2])
for topic in (b"flow", b"event", b"counter", b"template", b"option", b"hello"):
    socket.setsockopt(zmq.SUBSCRIBE, topic)


def records(b):
    if b[:2] != b"\x01\x01":
        raise ValueError("no TLV: " + b[:8].hex())
    at = 2
    formats = {2: ">B", 3: ">H", 4: ">I", 5: ">Q", 6: ">b", 7: ">h", 8: ">i", 9: ">q", 10: "<f"}

    def value(kind):
        nonlocal at
        if kind == 11:
            (n,) = struct.unpack_from(">H", b, at)
            v = b[at + 2 : at + 2 + n].decode()
            at += 2 + n
            return v
        (v,) = struct.unpack_from(formats[kind], b, at)
        at += struct.calcsize(formats[kind])
        return v

    record = {}
    while at < len(b):
        kind = b[at]
        at += 1
        if kind == 1:
            yield record
            record = {}
            continue
        key = value(kind >> 4)
        record[str(key)] = value(kind & 15)
    if record:
        raise ValueError("a record does not end")


def receive():
    while True:
        header, payload = socket.recv_multipart()
        url, version, flags, size, compressed, number, source = (
            header[:16].rstrip(b"\0").decode(), header[16], header[17],
            *struct.unpack("<II", header[20:28]), *struct.unpack(">I", header[28:32]), *struct.unpack("<I", header[32:36]))
        if len(header) != 36 or version != 4 or size != len(payload) or compressed != size:
            raise ValueError("header " + header.hex())
        body = list(records(payload)) if flags == 2 else json.loads(payload)
        print(json.dumps({"topic": url, "flags": flags, "id": number, "source": source, "body": body}), flush=True)


threading.Thread(target=receive, daemon=True).start()
sys.stdin.read()
