package main

import "testing"

// TestZones: the router tracks connections in zones, for both directions or for one. Where each end has a record of its own, both are looked up there.
func TestZones(t *testing.T) {
	for _, c := range []struct {
		name  string
		rules []string
	}{
		{"one", []string{"r -t raw -A PREROUTING -j CT --zone 5"}},
		{"of the question", []string{"r -t raw -A PREROUTING -i sfr0 -j CT --zone-orig 7"}},
		{"of the answer", []string{"r -t raw -A PREROUTING -j CT --zone-reply 8"}},
		// The client's namespace tracks them too, and does not translate.
		{"on the way", []string{"a -t raw -A OUTPUT -j CT --zone 9", "a -t raw -A PREROUTING -j CT --zone 9", "r -t raw -A PREROUTING -j CT --zone 65535"}},
	} {
		t.Run(c.name, func(t *testing.T) { testPostNAT(t, ipv4, "separate", c.rules...) })
	}
	t.Run("IPv6", func(t *testing.T) { testPostNAT(t, ipv6, "separate", "r -t raw -A PREROUTING -j CT --zone 6") })
}
