"""trunk.py NETNS: a cable with VLAN tags between this network namespace and NETNS. Both ends are TAP devices; every frame that passes is
also written, tagged, to the TAP device trunk here: VLAN 7 by 802.1Q, and what goes back in addition within a provider's VLAN 100."""
import fcntl, os, select, socket, struct, subprocess, sys

IFF_TAP, IFF_NO_PI, TUNSETIFF = 2, 0x1000, 0x400454CA

def tap(name):
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
    return fd

def ip(*args):
    subprocess.run(["ip", *args], check=True)

here, there, trunk = tap("vlan0"), tap("vlan1"), tap("trunk")
ip("link", "set", "vlan1", "netns", sys.argv[1])
ip("addr", "add", "10.79.0.1/24", "dev", "vlan0")
ip("link", "set", "vlan0", "up")
ip("link", "set", "trunk", "up")
ip("-n", sys.argv[1], "addr", "add", "10.79.0.2/24", "dev", "vlan1")
ip("-n", sys.argv[1], "link", "set", "vlan1", "up")
while True:
    for fd in select.select([here, there, trunk], [], [])[0]:
        frame = os.read(fd, 65536)
        if fd == trunk:
            continue  # what this host itself would say there
        os.write(there if fd == here else here, frame)
        tags = struct.pack("!HH", 0x8100, 7)
        if fd == there:
            tags = struct.pack("!HH", 0x88A8, 100) + tags
        os.write(trunk, frame[:12] + tags + frame[12:])
