"""offload.py INTERFACE: turns segmentation and receive offload off (ethtool's ioctls, linux/ethtool.h)."""
import fcntl, socket, struct, sys
import array
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for cmd in (0x15, 0x17, 0x1f, 0x22, 0x24, 0x2c):  # STXCSUM stays; SRXCSUM, STSO, SGSO...
    if cmd in (0x15,):
        continue
    value = array.array("B", struct.pack("II", cmd, 0))
    request = struct.pack("16sP8x", sys.argv[1].encode(), value.buffer_info()[0])
    try:
        fcntl.ioctl(s, 0x8946, request)
    except OSError:
        pass
