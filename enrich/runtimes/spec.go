package runtimes

import (
	"encoding/json"
	"net/netip"
	"strings"

	"github.com/sockflow/sockflow/flowcache"
)

// Annotations that CRI of containerd puts into the OCI configuration (pkg/cri/annotations), and its record of a sandbox.
const (
	annotationSandbox = "io.kubernetes.cri.sandbox-id"
	annotationImage   = "io.kubernetes.cri.image-name"
	sandboxMetadata   = "io.cri-containerd.sandbox.metadata"
)

// spec is what is read of an OCI runtime configuration (config.json).
type spec struct {
	Annotations map[string]string `json:"annotations"`
	Linux       struct {
		CgroupsPath string `json:"cgroupsPath"`
	} `json:"linux"`
}

// parseSpec reads a configuration; what it cannot read is empty.
func parseSpec(b []byte) spec {
	var s spec
	if json.Unmarshal(b, &s) != nil {
		return spec{}
	}
	return s
}

// cgroup returns where the container is below the root of control groups, "" if the configuration does not say.
func (s *spec) cgroup() string {
	path := s.Linux.CgroupsPath
	if strings.HasPrefix(path, "/") {
		return strings.TrimRight(path, "/")
	}
	// For the systemd driver of runc: slice:prefix:name.
	f := strings.Split(path, ":")
	if len(f) != 3 || f[2] == "" {
		return ""
	}
	slice, unit := f[0], f[2]
	if slice == "" {
		slice = "system.slice"
	}
	if !strings.HasSuffix(unit, ".slice") {
		if f[1] != "" {
			unit = f[1] + "-" + unit
		}
		unit += ".scope"
	}
	return expandSlice(slice) + "/" + unit
}

// expandSlice returns the path of a slice, whose name has those of the slices around it (systemd.slice(5)).
func expandSlice(name string) string {
	base, ok := strings.CutSuffix(name, ".slice")
	if !ok || base == "-" {
		return ""
	}
	path := ""
	for i, c := range base + "-" {
		if c == '-' && i > 0 {
			path += "/" + base[:i] + ".slice"
		}
	}
	return path
}

// networkOfNode is NamespaceMode_NODE of CRI: a pod on the host's network, whose addresses are not its own.
const networkOfNode = 2

// parseSandbox returns the addresses in a record of a sandbox by CRI of containerd.
func parseSandbox(b []byte) []flowcache.Addr {
	var r struct {
		Metadata struct {
			IP            string
			AdditionalIPs []string
			Config        struct {
				Linux struct {
					SecurityContext struct {
						NamespaceOptions struct {
							Network int `json:"network"`
						} `json:"namespace_options"`
					} `json:"security_context"`
				} `json:"linux"`
			}
		}
	}
	if json.Unmarshal(b, &r) != nil || r.Metadata.Config.Linux.SecurityContext.NamespaceOptions.Network == networkOfNode {
		return nil
	}
	return parseAddresses(append([]string{r.Metadata.IP}, r.Metadata.AdditionalIPs...)...)
}

// parseAddresses returns those of the texts that are addresses of one end alone.
func parseAddresses(texts ...string) []flowcache.Addr {
	var list []flowcache.Addr
	for _, s := range texts {
		a, err := netip.ParseAddr(s)
		if err != nil || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() {
			continue
		}
		list = append(list, flowcache.Addr(a.As16()))
	}
	return list
}
