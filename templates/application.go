package templates

import (
	"strconv"

	"github.com/sockflow/sockflow/flowcache"
)

// Application is an entry of the table of applications (RFC 6759, section 6.6).
type Application struct {
	ID                uint32
	Name, Description string
}

// userDefined is the classification engine of applications that this exporter names (RFC 6759, section 4.1); the selector has 24 bits.
const userDefined = 6 << 24

// applicationID is applicationId of a record: of its programs, where these are known and asked for, else of the responder's port.
func (c *context) applicationID(r *flowcache.Record) uint32 {
	if !c.programs || who(&r.Source).Name == "" && who(&r.Dest).Name == "" {
		return portApplication(c.responder(r))
	}
	// FNV-1a, folded to 24 bits: the same names have the same number in every session and on every host, and no table is needed to find it.
	h := uint32(2166136261)
	for _, e := range [2]*flowcache.End{&r.Source, &r.Dest} {
		for _, s := range [2]string{who(e).Name, where(e)} {
			for i := range len(s) {
				h = (h ^ uint32(s[i])) * 16777619
			}
			h *= 16777619 // between two texts
		}
	}
	return userDefined | h>>24 ^ h&0xffffff
}

// Application returns the application that a record's applicationId stands for, and false where that has no name, or records have none. Of two
// programs, that of the source comes first.
func (s *Set) Application(r *flowcache.Record) (id uint32, ok bool) {
	if !s.applications || classOf(r.Key.Proto, !r.Key.Is4()) > classPorts {
		return 0, false
	}
	id = s.ctx.applicationID(r)
	return id, id>>24 == userDefined>>24 || ServiceName(uint16(id)) != ""
}

// NameApplication returns the entry of an application: of a port its name by IANA; for the programs of a record "curl>nginx", and where they run,
// "web-0>db-0": the pod, the container, the unit, or else the user. Of an end of which nothing is known there is nothing.
func NameApplication(id uint32, r *flowcache.Record) Application {
	if id>>24 != userDefined>>24 {
		return Application{id, ServiceName(uint16(id)), "IANA port " + strconv.Itoa(int(uint16(id)))}
	}
	return Application{id, both(who(&r.Source).Name, who(&r.Dest).Name), both(where(&r.Source), where(&r.Dest))}
}

func both(source, dest string) string {
	if source == "" || dest == "" {
		return source + dest
	}
	return source + ">" + dest
}

// where is the pod, container, unit or user of an end.
func where(e *flowcache.End) string {
	switch w := workload(e); {
	case w.PodName != "":
		return w.PodName
	case w.ContainerName != "":
		return w.ContainerName
	case w.ServiceUnit != "":
		return w.ServiceUnit
	}
	return who(e).UserName
}
