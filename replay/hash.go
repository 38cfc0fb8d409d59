package replay

import (
	"math/bits"
	"math/rand/v2"
)

// seed makes hashes that the author of a capture cannot foresee: flows that he chose to collide would make each look-up a walk.
type seed [5]uint64

func newSeed() *seed {
	var s seed
	for i := range s {
		s[i] = rand.Uint64() | 1
	}
	return &s
}

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// hash is of an ordered tuple.
func (s *seed) hash(t *tuple) uint32 {
	h := mix(t.src0^s[0], t.src1^s[1]) ^ mix(t.dst0^s[2], t.dst1^s[3])
	return uint32(mix(h^t.ports, s[4]) >> 16)
}

// shard chooses a shard without a seed: the order of the records that leave depends on it, and must be the same every time.
func (t *tuple) shard() int {
	const k0, k1, k2 = 0x9e3779b97f4a7c15, 0xc2b2ae3d27d4eb4f, 0x165667b19e3779f9
	return int(((t.src0^t.src1)*k0 + (t.dst0^t.dst1)*k1 + t.ports*k2) >> 63)
}
