"""extension.py server|client: UDP and TCP with IPv6 extension headers that the kernel adds (RFC 3542, sticky options)."""
import socket, sys

HOPOPTS, DSTOPTS = 54, 59  # IPV6_HOPOPTS, IPV6_DSTOPTS of linux/in6.h
OPTION = bytes([0, 0, 1, 4, 0, 0, 0, 0])  # next header and length are the kernel's; PadN

def options(s, *which):
    for o in which:
        s.setsockopt(socket.IPPROTO_IPV6, o, OPTION)

if sys.argv[1] == "server":
    u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    u.bind(("::", 7))
    t = socket.create_server(("::", 7), family=socket.AF_INET6)
    options(t, DSTOPTS)
    for _ in range(4):
        data, peer = u.recvfrom(4096)
        u.sendto(data, peer)
    c, _ = t.accept()
    c.sendall(c.recv(4096))
    c.close()
else:
    import time
    time.sleep(0.5)
    for which in ((HOPOPTS,), (DSTOPTS,), (HOPOPTS, DSTOPTS)):
        u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        u.settimeout(2)
        options(u, *which)
        u.sendto(b"x" * 100, ("fd77::2", 7))
        u.recv(4096)
    options(u, DSTOPTS)
    u.sendto(b"y" * 3000, ("fd77::2", 7))  # fragments, each after a hop-by-hop header
    u.recv(4096)
    t = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    options(t, HOPOPTS, DSTOPTS)
    t.connect(("fd77::2", 7))
    t.sendall(b"z" * 200)
    while t.recv(4096):
        pass
    t.close()
