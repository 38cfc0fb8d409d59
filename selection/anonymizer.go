package selection

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/internal/smallfile"
)

// Anonymizer replaces addresses by Crypto-PAn (Xu, Fan, Ammar, Moon: Prefix-Preserving IP Address Anonymization, ICNP 2002): one to one, and two
// addresses that have their first n bits in common have n in common afterwards. With the same key every exporter gives an address the
// same replacement. It belongs to one goroutine.
type Anonymizer struct {
	block cipher.Block
	pad   [aes.BlockSize]byte
	known map[flowcache.Addr]flowcache.Addr
}

// keySize is the octets of a key: of AES 128, and of the pad.
const keySize = 32

// maxKnown bounds the addresses that are remembered: an IPv4 address takes 32 runs of AES, an IPv6 address 128.
const maxKnown = 1 << 16

// ReadKey reads a key from a file: 32 octets, or 64 hexadecimal digits that may begin with 0x, and perhaps a line end.
func ReadKey(file string) ([]byte, error) {
	b, err := smallfile.Read(file)
	if err != nil {
		return nil, err
	}
	if len(b) == keySize {
		return b, nil
	}
	text := strings.TrimRight(string(b), "\r\n")
	if key, err := hex.DecodeString(strings.TrimPrefix(text, "0x")); err == nil && len(key) == keySize {
		return key, nil
	}
	if len(text) == keySize {
		return []byte(text), nil
	}
	return nil, fmt.Errorf("%s: no key: want 32 octets, or 64 hexadecimal digits", file)
}

// NewAnonymizer returns an Anonymizer for a key of keySize octets.
func NewAnonymizer(key []byte) (*Anonymizer, error) {
	if len(key) != keySize {
		return nil, errors.New("a key has 32 octets")
	}
	block, err := aes.NewCipher(key[:16])
	if err != nil {
		return nil, err
	}
	a := &Anonymizer{block: block, known: map[flowcache.Addr]flowcache.Addr{}}
	block.Encrypt(a.pad[:], key[16:])
	return a, nil
}

// Record replaces the addresses of r.
func (a *Anonymizer) Record(r *flowcache.Record) {
	r.Key.Src, r.Key.Dst = a.Addr(r.Key.Src), a.Addr(r.Key.Dst)
	for _, t := range [...]*flowcache.Translation{&r.Post, &r.Pre} {
		if *t != (flowcache.Translation{}) {
			t.Src, t.Dst = a.Addr(t.Src), a.Addr(t.Dst)
		}
	}
}

// Addr returns the replacement of an address. An unspecified address stays: it stands for none.
func (a *Anonymizer) Addr(addr flowcache.Addr) flowcache.Addr {
	if addr.IsUnspecified() {
		return addr
	}
	if to, ok := a.known[addr]; ok {
		return to
	}
	to := addr
	if addr.Is4() {
		a.replace(to[12:], addr[12:])
	} else {
		a.replace(to[:], addr[:])
	}
	if len(a.known) >= maxKnown {
		clear(a.known)
	}
	a.known[addr] = to
	return to
}

// replace turns over each bit by the first bit of the cipher of the bits before it, filled up with the pad.
func (a *Anonymizer) replace(to, from []byte) {
	in := a.pad
	var out [aes.BlockSize]byte
	for i := range 8 * len(from) {
		octet, bit := i/8, byte(0x80)>>(i%8)
		a.block.Encrypt(out[:], in[:])
		to[octet] = to[octet]&^bit | (from[octet]^out[0]>>7<<(7-i%8))&bit
		in[octet] = in[octet]&^bit | from[octet]&bit
	}
}
