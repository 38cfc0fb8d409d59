package sockdiag

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// namespace is an open network namespace. Its sockets pin it: it is closed when nobody else refers to it any more.
type namespace struct {
	inode uint32
	path  string // where it was found last; empty for the own
	dump  *netlink.Conn
	dead  *netlink.Conn // destroy groups; nil where they are not allowed

	mu    sync.Mutex
	ports map[uint16]int64 // that accept connections, with the time of the last pass that showed so
}

// portMemory is how long a port that accepted connections is remembered after the last pass that showed one, if
// that is longer than two passes: the end of one that ended since may still be unread.
const portMemory = 10 * time.Second

// accepts notes that the pass at the time now has seen a listening socket at a port, or a connection that was
// accepted there.
func (ns *namespace) accepts(port uint16, now int64) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	ns.ports[port] = now
}

// accepted reports whether a socket that is not listening is the child of one that was: whether its local port
// accepts connections. A port does as long as a pass shows one of its connections, though nothing listens there any
// more: an accepted socket stays one.
func (ns *namespace) accepted(port uint16) bool {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	_, ok := ns.ports[port]
	return ok
}

// forget forgets the ports that no pass has seen since a time.
func (ns *namespace) forget(since int64) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	for port, last := range ns.ports {
		if last < since {
			delete(ns.ports, port)
		}
	}
}

// Where named namespaces are mounted: iproute2, and Docker.
var mountedIn = []string{"/run/netns", "/run/docker/netns"}

// Namespaces returns a path to each network namespace that may be entered, by inode; the caller's own has an empty path.
func Namespaces(proc string) map[uint32]string {
	found, _ := namespaces(proc)
	var self syscall.Stat_t
	if syscall.Stat(proc+"/self/ns/net", &self) == nil {
		found[uint32(self.Ino)] = ""
	}
	return found
}

// isRoot reports whether this is root, and not that of a user namespace. The first one has a fixed inode number (include/linux/proc_ns.h).
func isRoot(proc string) bool {
	own, err := os.Readlink(proc + "/self/ns/user")
	return os.Geteuid() == 0 && (err != nil || own == "user:[4026531837]")
}

// namespaces returns a path to each namespace that a process is in or that is mounted, by inode, and whether
// there are processes that hide theirs: they may not be asked or, where proc is mounted with hidepid, not even be seen.
func namespaces(proc string) (map[uint32]string, bool) {
	found := map[uint32]string{}
	d, err := os.Open(proc)
	if err != nil {
		return found, false
	}
	names, _ := d.Readdirnames(-1)
	d.Close()
	hidden := !slices.Contains(names, "1") // there always is one
	for _, n := range names {
		if n[0] < '0' || n[0] > '9' {
			continue
		}
		path := proc + "/" + n + "/ns/net"
		link, err := os.Readlink(path)
		if errors.Is(err, os.ErrNotExist) {
			path, link = ofThread(proc + "/" + n)
		}
		if errors.Is(err, os.ErrPermission) {
			hidden = true
		}
		if inode, ok := namespaceInode(link); ok {
			if _, have := found[inode]; !have {
				found[inode] = path
			}
		}
	}
	for _, dir := range mountedIn {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			path := dir + "/" + e.Name()
			var st, self syscall.Stat_t
			if syscall.Stat(path, &st) != nil || syscall.Stat(proc+"/self/ns/net", &self) != nil || st.Dev != self.Dev {
				continue // not a namespace (any more)
			}
			if _, have := found[uint32(st.Ino)]; !have {
				found[uint32(st.Ino)] = path
			}
		}
	}
	return found, hidden
}

// ofThread returns the network namespace of a process whose first thread has ended while others go on: it is in none.
func ofThread(process string) (path, link string) {
	tasks, _ := os.ReadDir(process + "/task")
	for _, t := range tasks {
		path = process + "/task/" + t.Name() + "/ns/net"
		if link, err := os.Readlink(path); err == nil {
			return path, link
		}
	}
	return "", ""
}

// namespaceInode reads "net:[INODE]", as the links of /proc/PID/ns/net point to.
func namespaceInode(link string) (uint32, bool) {
	s, ok := strings.CutPrefix(link, "net:[")
	inode, err := strconv.ParseUint(strings.TrimSuffix(s, "]"), 10, 32)
	return uint32(inode), ok && err == nil
}

// openNamespace opens the namespace at path, or the caller's if path is empty.
func openNamespace(inode uint32, path string) (*namespace, error) {
	cfg := &netlink.Config{}
	if path != "" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("open namespace: %w", err)
		}
		defer f.Close()
		cfg.NetNS = int(f.Fd())
	}
	dump, err := netlink.Dial(netlinkSockDiag, cfg)
	if err != nil {
		return nil, fmt.Errorf("dial sock_diag: %w", err)
	}
	ns := &namespace{inode: inode, path: path, dump: dump, ports: map[uint16]int64{}}
	dump.SetReadBuffer(1 << 20) // best effort
	return ns, nil
}

// Multicast groups of sock_diag (enum sknetlink_groups).
const (
	groupTCPDestroy = 1 + iota
	groupUDPDestroy
	groupTCP6Destroy
	groupUDP6Destroy
)

// listen joins the destroy groups, which needs CAP_NET_ADMIN in the namespace.
func (ns *namespace) listen(path string) error {
	cfg := &netlink.Config{}
	if path != "" {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		cfg.NetNS = int(f.Fd())
	}
	c, err := netlink.Dial(netlinkSockDiag, cfg)
	if err != nil {
		return err
	}
	c.SetReadBuffer(8 << 20) // best effort
	for _, g := range []uint32{groupTCPDestroy, groupUDPDestroy, groupTCP6Destroy, groupUDP6Destroy} {
		if err := c.JoinGroup(g); err != nil {
			c.Close()
			return err
		}
	}
	ns.dead = c
	return nil
}

func (ns *namespace) close() {
	ns.dump.Close()
	if ns.dead != nil {
		ns.dead.Close() // its watcher ends
	}
}

// each calls f for each socket of a family and protocol in states. The messages go through buf.
func (ns *namespace) each(buf []byte, family, proto uint8, states uint32, s *socket, f func(*socket)) error {
	var req [requestLen]byte
	_, err := ns.dump.Send(netlink.Message{
		Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request | netlink.Dump},
		Data:   appendRequest(req[:0], family, proto, states),
	})
	if err != nil {
		return fmt.Errorf("request dump: %w", err)
	}
	for {
		n, err := receive(ns.dump, buf)
		if err != nil {
			return fmt.Errorf("receive dump: %w", err)
		}
		err = walk(buf[:n], s, func(s *socket) {
			s.proto = proto
			f(s)
		})
		switch {
		case errors.Is(err, errDone):
			return nil
		case errors.Is(err, syscall.ENOENT):
			return nil // the kernel was built without this protocol
		case err != nil:
			return fmt.Errorf("read dump: %w", err)
		}
	}
}

// receive reads one datagram into buf: mdlayher/netlink's Receive would allocate for each socket.
func receive(c *netlink.Conn, buf []byte) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int
	var rerr error
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, _, rerr = unix.Recvfrom(int(fd), buf, 0)
			if rerr != unix.EINTR {
				return rerr != unix.EAGAIN
			}
		}
	})
	if err != nil {
		return 0, err
	}
	return n, rerr
}
