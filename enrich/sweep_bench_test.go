package enrich

import (
	"fmt"
	"testing"

	"github.com/sockflow/sockflow/flowcache"
)

// BenchmarkSweep is what looking for what may be forgotten costs the loop, with as many containers and control groups as there may be.
func BenchmarkSweepOfControlGroups(b *testing.B) {
	c := NewCGroups(b.TempDir())
	for i := range maxContainers {
		id := fmt.Sprintf("%064x", i)
		apply(c, Container{
			Workload: flowcache.Workload{ContainerID: id, CGroupPath: "/docker/" + id}, Created: 1, At: 1,
			Addresses: []flowcache.Addr{flowcache.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})},
		})
	}
	for i := range 2*maxCGroups - 1 {
		c.Workload(fmt.Sprintf("/docker/%064x/%d", i%maxContainers, i))
	}
	b.ReportAllocs()
	for b.Loop() {
		c.Sweep(second)
	}
}
