package templates

import (
	"encoding/binary"

	"github.com/sockflow/sockflow/flowcache"
)

// kind is what a template is chosen by, so that a field that a record cannot have costs nothing:
//
//	bit 0     IPv6
//	bits 1-2  protocol class
//	bits 3-5  what is known of the source
//	bits 6-8  what is known of the destination
//	bit 9     addresses were translated
type kind uint16

const kinds = 1 << 10

// Classes of protocols.
const (
	classTCP   = iota
	classPorts // UDP and others with ports
	classICMP
	classOther
)

// What is known of an end; those from endKernel on are local.
const (
	endNone      = iota
	endElsewhere // not here, but its pod, service or node is known
	endKernel    // a socket of the kernel itself: there is no process
	endHost      // a process
	endContainer // a process in a container
	endPod       // a process in a container of a pod, or behind a Kubernetes service
)

func makeKind(v6 bool, class, source, dest int, nat bool) kind {
	k := kind(class<<1 | source<<3 | dest<<6)
	if v6 {
		k |= 1
	}
	if nat {
		k |= 1 << 9
	}
	return k
}

func (k kind) v6() bool    { return k&1 != 0 }
func (k kind) class() int  { return int(k >> 1 & 3) }
func (k kind) source() int { return int(k >> 3 & 7) }
func (k kind) dest() int   { return int(k >> 6 & 7) }
func (k kind) nat() bool   { return k&(1<<9) != 0 }

func kindOf(r *flowcache.Record) kind {
	v6 := !is4(&r.Key.Src) || !is4(&r.Key.Dst) || r.Key.Mapped
	post := &r.Post
	nat := !isZero(&post.Src) && (is4(&post.Src) && is4(&post.Dst)) != v6
	return makeKind(v6, classOf(r.Key.Proto, v6), knowledge(&r.Source), knowledge(&r.Dest), nat)
}

// is4 is Addr.Is4 without a copy.
func is4(a *flowcache.Addr) bool {
	return binary.LittleEndian.Uint64(a[:]) == 0 && binary.LittleEndian.Uint32(a[8:]) == 0xffff0000
}

func isZero(a *flowcache.Addr) bool {
	return binary.LittleEndian.Uint64(a[:])|binary.LittleEndian.Uint64(a[8:]) == 0
}

func classOf(proto uint8, v6 bool) int {
	switch proto {
	case flowcache.ProtoTCP:
		return classTCP
	case flowcache.ProtoUDP, flowcache.ProtoUDPLite, 33, 132: // DCCP, SCTP
		return classPorts
	case 1:
		if !v6 {
			return classICMP
		}
	case 58:
		if v6 {
			return classICMP
		}
	}
	return classOther
}

func knowledge(e *flowcache.End) int {
	w := e.Container
	switch {
	case !e.Local && (w != nil || e.Service != "" || e.Node != ""):
		return endElsewhere
	case !e.Local:
		return endNone
	case e.Kernel:
		return endKernel
	case e.Service != "" || w != nil && w.PodName != "":
		return endPod
	case w != nil && w.ContainerID != "":
		return endContainer
	}
	return endHost
}

// fold maps kinds that have one layout in the dialect iana, which describes the local end only, to one of them.
func (k kind) fold() kind {
	end := max(k.source(), k.dest())
	if end < endKernel {
		end = endNone
	}
	return makeKind(k.v6(), k.class(), end, endNone, k.nat())
}
