package enrich

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/internal/testkit"
)

// BenchmarkSteps is the longest time for which the loop is held up by what runtimes say: of as many containers as are kept, and more, beside 60 000 control
// groups, which come, end and are forgotten; and of containers of as many ports as are kept of one.
func BenchmarkSteps(b *testing.B) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b.Run("containers", func(b *testing.B) {
		const many = 100_000
		var come, end, forget testkit.Steps
		for b.Loop() {
			for _, s := range []*testkit.Steps{&come, &end, &forget} {
				s.Restart()
			}
			c := NewCGroups(b.TempDir())
			for i := range 60000 {
				c.Workload(fmt.Sprintf("/a%d/b/c", i))
			}
			batch := func(s *testkit.Steps, make func(i int) Container) {
				for i := 0; i < many; i += 128 {
					u := &ContainerUpdate{Runtime: fmt.Sprint("/run/", i/25000, ".sock"), Answering: true}
					for j := i; j < min(i+128, many); j++ {
						u.Containers = append(u.Containers, make(j))
					}
					s.Do(func() { c.Apply(u) })
				}
			}
			container := func(i int) Container {
				id := fmt.Sprintf("%064x", i)
				return Container{
					Workload: flowcache.Workload{ContainerID: id, CGroupPath: "/docker/" + id, ContainerName: "c"}, Created: second, At: second,
					Addresses: []flowcache.Addr{flowcache.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}, Published: []PublishedPorts{{6, uint16(i), uint16(i)}},
				}
			}
			come.Do(func() { c.Sweep(2 * second) })
			batch(&come, container)
			batch(&end, func(i int) Container {
				e := container(i)
				return Container{Workload: e.Workload, Created: e.Created, Ended: 2 * second}
			})
			for now := 2*second + int64(leaseMemory) + second; c.Stats().Known > 0 || c.leases.count > 0; now += second {
				forget.Do(func() { c.Sweep(now) })
			}
		}
		b.Logf("%v when they come, %v when they end, %v when they are forgotten", come.Longest(), end.Longest(), forget.Longest())
		b.ReportMetric(float64(max(come.Longest(), end.Longest(), forget.Longest()))/1e6, "ms/longest-step")
		b.ReportMetric(0, "ns/op")
	})
	b.Run("ports", func(b *testing.B) {
		var s testkit.Steps
		for b.Loop() {
			s.Restart()
			c := NewCGroups(b.TempDir())
			for i := range maxLeases + 10 { // one after the other has the same ports
				e := Container{Workload: flowcache.Workload{ContainerID: fmt.Sprintf("%064x", i)}, Created: int64(i+1) * second, At: int64(i+1) * second}
				for p := range 256 {
					e.Published = append(e.Published, PublishedPorts{6, uint16(40*p + 1), uint16(40*p + narrow)})
				}
				u := &ContainerUpdate{Runtime: "/run/r.sock", Answering: true, Containers: []Container{e}}
				s.Do(func() { c.Apply(u) })
				for j := range e.Published {
					e.Published[j].To--
				}
				s.Do(func() { c.Apply(u) })
				u.Containers[0] = Container{Workload: e.Workload, Created: e.Created, Ended: e.Created + 1}
				s.Do(func() { c.Apply(u) })
			}
		}
		b.ReportMetric(float64(s.Longest())/1e6, "ms/longest-step")
		b.ReportMetric(0, "ns/op")
	})
}
