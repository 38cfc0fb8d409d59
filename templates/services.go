package templates

import (
	_ "embed"
	"strconv"
	"strings"
	"sync"
)

// Names of IANA's Service Name and Transport Protocol Port Number Registry that are met in practice, one "port name" a line,
// ascending; where TCP and UDP differ, the one in use today.
//
//go:embed services.txt
var servicesText string

// Service is a port and its name.
type Service struct {
	Port uint16
	Name string
}

var services = sync.OnceValue(func() []Service {
	var l []Service
	for line := range strings.Lines(servicesText) {
		port, name, ok := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.ParseUint(port, 10, 16)
		if ok && err == nil {
			l = append(l, Service{uint16(n), name})
		}
	}
	return l
})

// Services returns the names of ports, ascending, for application tables (RFC 6759).
func Services() []Service { return services() }

// ServiceName is the name of a port, empty if it has none.
func ServiceName(port uint16) string {
	l := services()
	low, high := 0, len(l)
	for low < high {
		if m := int(uint(low+high) >> 1); l[m].Port < port {
			low = m + 1
		} else {
			high = m
		}
	}
	if low < len(l) && l[low].Port == port {
		return l[low].Name
	}
	return ""
}

// ApplicationID is applicationId of a port (RFC 6759, section 4.1): engine 3, which is IANA's port numbers, and the port.
func ApplicationID(port uint16) uint32 { return portApplication(port) }
