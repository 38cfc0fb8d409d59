package ipfix

import (
	"encoding/binary"
	"math"
	"net/netip"
	"strings"
	"unicode/utf8"

	"github.com/sockflow/sockflow/flowcache"
)

// Records in nDPI's TLV form, which ntopng reads: two octets (version and format 1), then per record its items and an octet 1. An item is
// a type octet (key type * 16 + value type), key and value; integers are big-endian and as narrow as they fit.
const (
	tlvEnd    = 1
	tlvUint8  = 2
	tlvUint16 = 3
	tlvUint32 = 4
	tlvUint64 = 5
	tlvFloat  = 10
	tlvString = 11
)

// Keys: NetFlow v9 field types, and ntop's own, which begin at 57472.
const (
	keyInBytes    = 1
	keyInPackets  = 2
	keyProtocol   = 4
	keyTCPFlags   = 6
	keySrcPort    = 7
	keySrcIPv4    = 8
	keyDstPort    = 11
	keyDstIPv4    = 12
	keyLast       = 21 // in Unix seconds here, not in uptime
	keyFirst      = 22
	keyOutBytes   = 23
	keyOutPackets = 24
	keySrcIPv6    = 27
	keyDstIPv6    = 28
	keyVersion    = 60
	keyExporter4  = 130
	keyExporter6  = 131

	keyClientTCPFlags     = 57472 + 78
	keyServerTCPFlags     = 57472 + 79
	keyRetransIn          = 57472 + 109
	keyRetransOut         = 57472 + 110
	keyClientLatency      = 57472 + 123 // ms
	keyServerLatency      = 57472 + 124
	keyRetransOctetsIn    = 57472 + 127
	keyRetransOctetsOut   = 57472 + 128
	keySrcPID             = 57472 + 168
	keySrcPath            = 57472 + 169
	keySrcUser            = 57472 + 372
	keySrcParentPID       = 57472 + 373
	keySrcParentPath      = 57472 + 374
	keyDstPID             = 57472 + 375
	keyDstPath            = 57472 + 376
	keyDstUser            = 57472 + 377
	keyDstParentPID       = 57472 + 378
	keyDstParentPath      = 57472 + 379
	keySrcUID             = 57472 + 425
	keyDstUID             = 57472 + 426
	keySrcCommand         = 57472 + 556
	keyDstCommand         = 57472 + 557
	keySrcContainer       = 57472 + 558
	keyDstContainer       = 57472 + 559
	keySrcParentUID       = 57472 + 564
	keyDstParentUID       = 57472 + 567
	maxTLVString          = 1024
	microsecondsInAMillis = 1000
)

// endKeys are the keys of one end. Keys in words are shown by ntopng as additional elements: it has no number for them.
type endKeys struct {
	pid, path, uid, user, parentPID, parentPath, parentUID, command, container uint16

	name, image, pod, namespace, service, unit string
}

var (
	sourceKeys = endKeys{
		keySrcPID, keySrcPath, keySrcUID, keySrcUser, keySrcParentPID, keySrcParentPath, keySrcParentUID, keySrcCommand, keySrcContainer,
		"SRC_CONTAINER_NAME", "SRC_CONTAINER_IMAGE", "K8S_SRC_POD", "K8S_SRC_NS", "K8S_SRC_SERVICE", "SRC_SERVICE_UNIT",
	}
	destKeys = endKeys{
		keyDstPID, keyDstPath, keyDstUID, keyDstUser, keyDstParentPID, keyDstParentPath, keyDstParentUID, keyDstCommand, keyDstContainer,
		"DST_CONTAINER_NAME", "DST_CONTAINER_IMAGE", "K8S_DST_POD", "K8S_DST_NS", "K8S_DST_SERVICE", "DST_SERVICE_UNIT",
	}
)

// tlv appends items.
type tlv []byte

func (b *tlv) key(valueType byte, key uint16) {
	if key < 256 {
		*b = append(*b, tlvUint8<<4|valueType, byte(key))
		return
	}
	*b = append(*b, tlvUint16<<4|valueType)
	*b = binary.BigEndian.AppendUint16(*b, key)
}

func (b *tlv) number(key uint16, v uint64) {
	switch {
	case v <= math.MaxUint8:
		b.key(tlvUint8, key)
		*b = append(*b, byte(v))
	case v <= math.MaxUint16:
		b.key(tlvUint16, key)
		*b = binary.BigEndian.AppendUint16(*b, uint16(v))
	case v <= math.MaxUint32:
		b.key(tlvUint32, key)
		*b = binary.BigEndian.AppendUint32(*b, uint32(v))
	default:
		b.key(tlvUint64, key)
		*b = binary.BigEndian.AppendUint64(*b, v)
	}
}

// float appends in the octet order of the host, as nDPI does, and every machine that ntopng runs on is little-endian.
func (b *tlv) float(key uint16, v float32) {
	b.key(tlvFloat, key)
	*b = binary.LittleEndian.AppendUint32(*b, math.Float32bits(v))
}

// value appends a string: paths may be any octets, and ntopng puts them into JSON.
func (b *tlv) value(s string) {
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\ufffd")
	}
	if len(s) > maxTLVString {
		n := maxTLVString
		for !utf8.RuneStart(s[n]) {
			n--
		}
		s = s[:n]
	}
	*b = binary.BigEndian.AppendUint16(*b, uint16(len(s)))
	*b = append(*b, s...)
}

// text appends nothing where there is nothing to say.
func (b *tlv) text(key uint16, s string) {
	if s != "" {
		b.key(tlvString, key)
		b.value(s)
	}
}

// named appends an item whose key is a word.
func (b *tlv) named(key, s string) {
	if s != "" {
		*b = append(*b, tlvString<<4|tlvString)
		b.value(key)
		b.value(s)
	}
}

func (b *tlv) address(key uint16, a netip.Addr) {
	var buf [48]byte
	s := a.AppendTo(buf[:0])
	b.key(tlvString, key)
	*b = binary.BigEndian.AppendUint16(*b, uint16(len(s)))
	*b = append(*b, s...)
}

// appendTLVStart begins a message.
func appendTLVStart(dst []byte) []byte { return append(dst, 1, 1) }

// appendTLV appends a record. exporter is this host's address, or empty.
func appendTLV(dst []byte, r *flowcache.Record, exporter string) []byte {
	b := tlv(dst)
	source, dest := r.Key.Netip()
	if r.Key.Is4() {
		b.number(keyVersion, 4)
		b.address(keySrcIPv4, source)
		b.address(keyDstIPv4, dest)
	} else {
		b.number(keyVersion, 6)
		b.address(keySrcIPv6, source)
		b.address(keyDstIPv6, dest)
	}
	b.number(keySrcPort, uint64(r.Key.SrcPort))
	b.number(keyDstPort, uint64(r.Key.DstPort))
	b.number(keyProtocol, uint64(r.Key.Proto))
	b.number(keyInBytes, r.Forward.Octets)
	b.number(keyInPackets, r.Forward.Packets)
	b.number(keyOutBytes, r.Reverse.Octets)
	b.number(keyOutPackets, r.Reverse.Packets)
	b.number(keyFirst, uint64(r.Start/1e9))
	b.number(keyLast, uint64(r.End/1e9))
	if strings.Contains(exporter, ":") {
		b.text(keyExporter6, exporter)
	} else {
		b.text(keyExporter4, exporter)
	}
	if r.HasTCP {
		b.number(keyTCPFlags, uint64(uint8(r.Control|r.ControlBack)))
		if !r.Arbitrary {
			// Without the SYN of the client, ntopng takes the lower port for the server's.
			b.number(keyClientTCPFlags, uint64(uint8(r.Control)))
			b.number(keyServerTCPFlags, uint64(uint8(r.ControlBack)))
		}
		b.number(keyRetransIn, r.Forward.RetransPackets)
		b.number(keyRetransOut, r.Reverse.RetransPackets)
		b.number(keyRetransOctetsIn, r.Forward.RetransOctets)
		b.number(keyRetransOctetsOut, r.Reverse.RetransOctets)
		if r.TCP.SRTT != 0 {
			// Half of the round trip, from this host to the other end.
			half := float32(r.TCP.SRTT) / 2 / microsecondsInAMillis
			if r.Source.Local {
				b.float(keyServerLatency, half)
			} else {
				b.float(keyClientLatency, half)
			}
		}
	}
	b.end(&r.Source, &sourceKeys)
	b.end(&r.Dest, &destKeys)
	return append(b, tlvEnd)
}

func (b *tlv) end(e *flowcache.End, k *endKeys) {
	if e.Process.PID != 0 {
		b.number(k.pid, uint64(e.Process.PID))
	}
	if e.Local && e.UID != flowcache.NoID {
		b.number(k.uid, uint64(e.UID))
	}
	if p := e.Who; p != nil {
		path := p.Path
		if path == "" {
			path = p.Name
		}
		b.text(k.path, path)
		b.text(k.user, p.UserName)
		b.text(k.command, p.CommandLine)
		if p.ParentPID != 0 {
			b.number(k.parentPID, uint64(p.ParentPID))
			b.text(k.parentPath, p.ParentPath)
			if p.ParentUID != flowcache.NoID {
				b.number(k.parentUID, uint64(p.ParentUID))
			}
		}
	}
	if w := e.Container; w != nil {
		b.text(k.container, w.ContainerID)
		b.named(k.name, w.ContainerName)
		b.named(k.image, w.ContainerImage)
		b.named(k.pod, w.PodName)
		b.named(k.namespace, w.PodNamespace)
		b.named(k.unit, w.ServiceUnit)
	}
	b.named(k.service, e.Service)
}
