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

// service is a port and its name.
type service struct {
	Port uint16
	Name string
}

var services = sync.OnceValue(func() []service {
	var l []service
	for line := range strings.Lines(servicesText) {
		port, name, ok := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.ParseUint(port, 10, 16)
		if ok && err == nil {
			l = append(l, service{uint16(n), name})
		}
	}
	return l
})

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
