package kube

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/sockflow/sockflow/flowcache"
	"github.com/sockflow/sockflow/internal/testkit"
)

// steps measures calls of Apply.
type steps struct{ testkit.Steps }

func (s *steps) apply(x *Index, changes []Change) { s.Do(func() { x.Apply(changes) }) }

// batched applies objects as a Source hands them over.
func (s *steps) batched(x *Index, at int64, step Step, objects []Object) {
	var changes []Change
	weight := 0
	for i := range objects {
		changes = append(changes, Change{Step: step, At: at, Object: objects[i]})
		if weight += objects[i].weight(); weight >= atOnce || i == len(objects)-1 {
			s.apply(x, changes)
			changes, weight = nil, 0
		}
	}
}

func manyPods(n int) (list []Object) {
	for i := range n {
		list = append(list, Object{Kind: Pod, UID: fmt.Sprintf("00000000-0000-4000-8000-%012x", i), Name: fmt.Sprint("pod", i), Namespace: fmt.Sprint("ns", i%100), Node: fmt.Sprint("n", i%1000),
			Addrs: []flowcache.Addr{flowcache.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})}})
	}
	return list
}

func largest(uid string) Object {
	o := Object{Kind: Service, UID: uid, Name: uid}
	for i := range maxAddrs {
		o.External = append(o.External, flowcache.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}))
	}
	for i := range maxPorts {
		o.Ports = append(o.Ports, Port{6, uint16(i + 1), uint16(i + 1)})
	}
	return o
}

// BenchmarkSteps is the longest time for which the loop is held up by what a Source says: of 200 000 pods that come, are listed anew and none of them is
// there any more, are forgotten; and of the largest services there can be, which all have the same addresses.
func BenchmarkSteps(b *testing.B) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b.Run("pods", func(b *testing.B) {
		pods := manyPods(DefaultMax)
		var come, gone, again steps
		for b.Loop() {
			for _, s := range []*steps{&come, &gone, &again} {
				s.Restart()
			}
			x := NewIndex(2*DefaultMax, nil)
			come.batched(x, 1, Set, pods)
			gone.apply(x, []Change{{Step: Listing, At: 2, Object: Object{Kind: Pod}}})
			for range len(pods)/Sweep + 1 {
				gone.apply(x, []Change{{Step: Listed, At: 2, Object: Object{Kind: Pod}}})
			}
			if st := x.Stats(); st.Objects[Pod] != 0 || st.Former != len(pods) {
				b.Fatalf("%+v", st)
			}
			for i := 0; x.Stats().Former > 1; i++ {
				again.apply(x, []Change{{Step: Set, At: memory + 3, Object: pods[i%2]}})
				if i > 10*len(pods) {
					b.Fatal("what is gone is not forgotten")
				}
			}
		}
		b.Logf("%v when they come, %v when they go, %v when they are forgotten", come.Longest(), gone.Longest(), again.Longest())
		b.ReportMetric(float64(max(come.Longest(), gone.Longest(), again.Longest()))/1e6, "ms/longest-step")
		b.ReportMetric(0, "ns/op")
	})
	b.Run("services", func(b *testing.B) {
		const many = maxClaims
		var come, change, gone, forgotten steps
		for b.Loop() {
			for _, s := range []*steps{&come, &change, &gone, &forgotten} {
				s.Restart()
			}
			x := NewIndex(10*DefaultMax, nil)
			var list []Object
			for i := range many {
				list = append(list, largest(fmt.Sprint("s", i)))
			}
			for i := range list {
				come.batched(x, 1, Set, list[i:i+1])
			}
			for i := range list {
				list[i].Name += "x"
				change.batched(x, 2, Set, list[i:i+1])
			}
			gone.apply(x, []Change{{Step: Listing, At: 3, Object: Object{Kind: Service}}})
			for x.Stats().Objects[Service] > 0 {
				gone.apply(x, []Change{{Step: Listed, At: 3, Object: Object{Kind: Service}}})
			}
			for x.Stats().Former > 0 {
				forgotten.apply(x, []Change{{Step: Delete, At: memory + 4, Object: Object{Kind: Service}}})
			}
		}
		b.Logf("%v when they come, %v when they change, %v when they go, %v when they are forgotten", come.Longest(), change.Longest(), gone.Longest(), forgotten.Longest())
		b.ReportMetric(float64(max(come.Longest(), change.Longest(), gone.Longest(), forgotten.Longest()))/1e6, "ms/longest-step")
		b.ReportMetric(0, "ns/op")
	})
}
