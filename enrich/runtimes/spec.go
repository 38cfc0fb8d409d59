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
	sandbox, image string // of annotations
	cgroupsPath    string
}

// parseSpec reads a configuration; what it cannot read is empty. It looks for three strings in some 20 kB, and leaves the rest alone: read
// whole, configurations would be most of what naming costs.
func parseSpec(b []byte) spec {
	annotations, linux := member(b, "annotations"), member(b, "linux")
	return spec{text(member(annotations, annotationSandbox)), text(member(annotations, annotationImage)), text(member(linux, "cgroupsPath"))}
}

// member returns the value of a JSON object's member, nil if it has none of this name or is no object. It checks no more than it must
// to find it. Names with escapes are not found.
func member(b []byte, name string) []byte {
	i := blanks(b, 0)
	if i >= len(b) || b[i] != '{' {
		return nil
	}
	for i++; ; i++ {
		i = blanks(b, i)
		if i >= len(b) || b[i] != '"' {
			return nil
		}
		end := skip(b, i)
		if end < i+2 {
			return nil
		}
		found := string(b[i+1:end-1]) == name
		if i = blanks(b, end); i >= len(b) || b[i] != ':' {
			return nil
		}
		i = blanks(b, i+1)
		if end = skip(b, i); end < 0 {
			return nil
		}
		if found {
			return b[i:end]
		}
		if i = blanks(b, end); i >= len(b) || b[i] != ',' {
			return nil
		}
	}
}

func blanks(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\t' || b[i] == '\r') {
		i++
	}
	return i
}

// skip returns where the value at i ends, negative if it does not.
func skip(b []byte, i int) int {
	depth := 0
	for ; i < len(b); i++ {
		switch b[i] {
		case '"':
			for i++; ; i++ {
				if i >= len(b) {
					return -1
				}
				if b[i] == '\\' {
					i++
				} else if b[i] == '"' {
					break
				}
			}
			if depth == 0 {
				return i + 1
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i // of what is around it
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',':
			if depth == 0 {
				return i
			}
		}
	}
	return -1
}

// text returns the string that a JSON value is, "" if it is another.
func text(b []byte) string {
	var s string
	if len(b) == 0 || json.Unmarshal(b, &s) != nil {
		return ""
	}
	return s
}

// cgroup returns where the container is below the root of control groups, "" if the configuration does not say.
func (s *spec) cgroup() string {
	path := s.cgroupsPath
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

// maxAddresses is how many addresses of a container are followed.
const maxAddresses = 128

// parseAddresses returns those of the texts that are addresses of one end alone.
func parseAddresses(texts ...string) []flowcache.Addr { return appendAddresses(nil, texts...) }

func appendAddresses(list []flowcache.Addr, texts ...string) []flowcache.Addr {
	for _, s := range texts {
		a, err := netip.ParseAddr(s)
		if err != nil || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() || len(list) >= maxAddresses {
			continue
		}
		list = append(list, flowcache.Addr(a.As16()))
	}
	return list
}
