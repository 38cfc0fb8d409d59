package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sockflow/sockflow/bpf"
)

// tunnels are the kinds of interfaces whose outer packets no socket sends: device types in /sys/class/net/NAME/uevent.
var tunnels = []string{"vxlan", "geneve", "wireguard", "gtp", "bareudp"}

// otherKernels are names of programs (comm, 15 octets at most) that run other kernels, with sockets of their own.
var otherKernels = map[string]string{
	"runsc-sandbox": "gVisor", "firecracker": "Firecracker", "cloud-hyperviso": "Cloud Hypervisor", "qemu-system-x86": "QEMU", "qemu-system-aar": "QEMU", "qemu-kvm": "QEMU",
	"dragonball": "Dragonball", "VBoxHeadless": "VirtualBox",
}

// unseen says what of this host's traffic is in no socket of this kernel's TCP or UDP. docs/architecture.md has the
// whole list.
func (d *doctor) unseen() {
	if n, err := bpf.SocketMaps(); err != nil {
		d.say(note, "sockmap", "not known whether programs redirect payload between sockets: "+err.Error())
	} else if n > 0 {
		d.say(note, "sockmap", fmt.Sprintf("%d maps of sockets: of what programs redirect through them (sk_msg) there are no packets; payload is counted by eBPF alone", n))
	} else {
		d.say(note, "sockmap", "none: no program redirects payload between sockets")
	}
	if found := tunnelInterfaces("/sys/class/net"); len(found) > 0 {
		d.say(note, "tunnels", strings.Join(found, ", ")+": the outer packets have no socket; the inner ones' are seen")
	} else {
		d.say(note, "tunnels", "none in this network namespace")
	}
	if n := ipvsServices(filepath.Join(d.settings.proc, "net/ip_vs")); n > 0 {
		d.say(note, "IPVS", fmt.Sprintf("services over UDP: %d; of datagrams that processes of this network namespace send to them only the answers are seen; if the server is here too, what it received is told", n))
	} else {
		d.say(note, "IPVS", "no service over UDP in this network namespace")
	}
	if found := guests(d.settings.proc); len(found) > 0 {
		d.say(note, "other kernels", strings.Join(found, ", ")+": sockets inside are not seen; --interface counts their packets")
	} else {
		d.say(note, "other kernels", "none: no gVisor or virtual machine runs here")
	}
}

// tunnelInterfaces returns the tunnels below a folder as /sys/class/net, with their kinds.
func tunnelInterfaces(dir string) (found []string) {
	files, _ := filepath.Glob(dir + "/*/uevent")
	for _, file := range files {
		b, _ := os.ReadFile(file)
		for line := range strings.Lines(string(b)) {
			if kind, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVTYPE="); ok && slices.Contains(tunnels, kind) {
				found = append(found, fmt.Sprintf("%s (%s)", filepath.Base(filepath.Dir(file)), kind))
			}
		}
	}
	return found
}

// ipvsServices counts the services over UDP in a table as /proc/net/ip_vs: lines of protocol, address and port, and scheduler.
func ipvsServices(file string) (n int) {
	b, _ := os.ReadFile(file)
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "UDP ") {
			n++
		}
	}
	return n
}

// guests returns what runs other kernels, and how many of each.
func guests(proc string) (found []string) {
	files, _ := filepath.Glob(proc + "/[0-9]*/comm")
	count := map[string]int{}
	for _, file := range files {
		b, _ := os.ReadFile(file)
		if name := otherKernels[strings.TrimSpace(string(b))]; name != "" {
			count[name]++
		}
	}
	for _, name := range slices.Sorted(maps.Keys(count)) {
		found = append(found, fmt.Sprintf("%d of %s", count[name], name))
	}
	return found
}
