package runtimes

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestDockerVersions: names, image, labels, addresses and published ports by the API of Docker 20.10 (1.41) and of 29 (1.52), whose events have no status, id and
// from, and whose answers have no addresses outside of Networks. What is not asked for with a version is answered by the newest.
func TestDockerVersions(t *testing.T) {
	began := time.Now()
	at := func(seconds int) time.Time { return began.Add(time.Duration(seconds) * time.Second) }
	stamp := func(seconds int) string { return at(seconds).UTC().Format(time.RFC3339Nano) }
	for _, v := range []struct {
		name, version string
		top           string // members of the top of an event
		settings      string // of NetworkSettings, beside those of networks
		network       string // of a network
		container     string // of a container in a list
	}{
		{
			"20.10", `{"Platform":{"Name":"Docker Engine - Community"},"Components":[{"Name":"Engine","Version":"20.10.24","Details":{"ApiVersion":"1.41","MinAPIVersion":"1.12"}},{"Name":"containerd","Version":"1.6.20"},{"Name":"runc","Version":"1.1.5"}],"Version":"20.10.24","ApiVersion":"1.41","MinAPIVersion":"1.12"}`,
			`"status":"%[1]s","id":"%[2]s","from":"shop/web:2",`, `"Bridge":"","HairpinMode":false,"IPAddress":"172.17.0.9","GlobalIPv6Address":"","Gateway":"172.17.0.1","SecondaryIPAddresses":null,`,
			`"IPAMConfig":null,"Links":null,"Aliases":null,`, ``,
		},
		{
			"29", `{"Platform":{"Name":"Docker Engine - Community"},"Version":"29.0.0","ApiVersion":"1.52","MinAPIVersion":"1.44","Components":[{"Name":"Engine","Version":"29.0.0","Details":{"ApiVersion":"1.52","MinAPIVersion":"1.44"}},{"Name":"containerd","Version":"v2.1.5"},{"Name":"runc","Version":"1.3.3"}]}`,
			``, ``, `"IPAMConfig":{},"Links":null,"Aliases":[],"DriverOpts":null,"GwPriority":0,"DNSNames":["web","0123456789ab"],`,
			`"ImageManifestDescriptor":{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:x","size":1,"platform":{"architecture":"amd64","os":"linux"}},"Health":{"Status":"none","FailingStreak":0},`,
		},
	} {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			f.version = v.version
			var s speaker
			f.events = func(w http.ResponseWriter, r *http.Request) {
				s.listen(w, r)
			}
			inspect := func(n int, name, ip, port string) string {
				return fmt.Sprintf(`{"Id":"%s","Created":"%s","Name":"/%s","State":{"Status":"running","Running":true,"Pid":0,"StartedAt":"%s","FinishedAt":"0001-01-01T00:00:00Z"},`+
					`"Config":{"Image":"shop/web:2","Labels":{"app":"w,2"}},"HostConfig":{"NetworkMode":"bridge"},"NetworkSettings":{%s"SandboxID":"s","SandboxKey":"/var/run/docker/netns/s","Ports":{"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"%s"},{"HostIp":"::","HostPort":"%s"}],"81/udp":null},`+
					`"Networks":{"bridge":{%s"MacAddress":"02:42:ac:11:00:02","NetworkID":"n","EndpointID":"e","Gateway":"10.1.0.1","IPAddress":"%s","IPPrefixLen":24,"IPv6Gateway":"","GlobalIPv6Address":"fd00::%d","GlobalIPv6PrefixLen":64}}}}`,
					id(n), stamp(0), name, stamp(1), v.settings, port, port, v.network, ip, n)
			}
			list := func(n int, name, ip string) string {
				return fmt.Sprintf(`{"Id":"%s","Names":["/%s"],"Image":"shop/web:2","ImageID":"sha256:x",%s"Command":"/bin/pod","Created":%d,"Ports":[{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":8081,"Type":"tcp"},{"PrivatePort":81,"Type":"udp"}],`+
					`"Labels":{"app":"w,2"},"State":"running","Status":"Up 2 minutes","HostConfig":{"NetworkMode":"bridge"},"NetworkSettings":{"Networks":{"bridge":{%s"IPAddress":"%s","GlobalIPv6Address":"fd00::%d"}}},"Mounts":[]}`,
					id(n), name, v.container, began.Unix(), v.network, ip, n)
			}
			event := func(n int, kind, action, attributes string, seconds int) string {
				of := id(n)
				if kind == "network" {
					of = "n"
				}
				top := ""
				if v.top != "" && kind == "container" {
					top = fmt.Sprintf(v.top, action, of)
				}
				return fmt.Sprintf(`{%s"Type":"%s","Action":"%s","Actor":{"ID":"%s","Attributes":{%s}},"scope":"local","time":%d,"timeNano":%d}`+"\n", top, kind, action, of, attributes, at(seconds).Unix(), at(seconds).UnixNano())
			}
			f.list = "[" + list(1, "older", "10.1.0.2") + "]"
			f.inspect = map[string]string{id(1): inspect(1, "older", "10.1.0.2", "8081"), id(2): inspect(2, "web", "10.1.0.3", "8082")}
			g := watch(t, only(f.socket))
			soon(t, "it listens", s.listened)
			soon(t, "the list", func() bool { return g.holder("10.1.0.2", at(5)) == "older" })
			if w := g.name(id(1)); w.ContainerName != "older" || w.ContainerImage != "shop/web:2" || w.PodLabels != "app=w;2" || w.ContainerRuntime != "docker" {
				t.Errorf("%+v", w)
			}
			const attributes = `"name":"web","image":"shop/web:2","app":"w,2"`
			s.say(event(2, "container", "create", attributes, 2) + event(2, "network", "connect", `"container":"`+id(2)+`","name":"bridge","type":"bridge"`, 3) + event(2, "container", "start", attributes, 4))
			soon(t, "the address", func() bool { return g.holder("10.1.0.3", at(3)) == "web" && g.holder("fd00::2", at(9)) == "web" })
			if w := g.name(id(2)); w.ContainerName != "web" || w.ContainerImage != "shop/web:2" || w.PodLabels != "app=w;2" {
				t.Errorf("%+v", w)
			}
			s.say(event(2, "container", "exec_start: /bin/sh", attributes, 5) + event(2, "container", "die", attributes+`,"exitCode":"0"`, 6) +
				event(2, "network", "disconnect", `"container":"`+id(2)+`","name":"bridge","type":"bridge"`, 6) + event(2, "container", "destroy", attributes, 7))
			soon(t, "its end", func() bool { return g.holder("10.1.0.3", at(8)) == "" && g.holder("10.1.0.3", at(5)) == "web" })
			if got := g.holder("172.17.0.9", at(5)); got != "" {
				t.Errorf("an address of no network is %q", got)
			}
			if st := g.w.Stats()[0]; st.Errors != 0 || st.Malformed != 0 || st.TooLong != 0 {
				t.Errorf("%+v", st)
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			for path := range f.asked {
				if strings.HasPrefix(path, "/v1.") {
					t.Errorf("%s was asked for, which a later version may refuse", path)
				}
			}
		})
	}
}
