package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/sockflow/sockflow/bpf"
	"github.com/sockflow/sockflow/enrich/runtimes"
	"github.com/sockflow/sockflow/internal/smallfile"
	"github.com/sockflow/sockflow/ipfix"
)

// settings are the flags of run. Each is also SOCKFLOW_<NAME> in the environment and a key of the --config file; the command
// line wins over the environment, and that over the file.
type settings struct {
	collectors       []string
	activeTimeout    time.Duration
	idleTimeout      time.Duration
	maxFlows         int
	memoryLimit      string
	snapshotInterval time.Duration
	source           string
	direction        string
	localPairs       string
	withoutHooks     []string
	auditInterval    time.Duration
	domain           uint32
	pen              uint32
	dialect          string
	v9Base           uint16
	mtu              int
	templateRefresh  time.Duration
	reconnectMin     time.Duration
	reconnectMax     time.Duration
	exporting        exporting
	selecting        selecting
	runtimes         runtimes.Config
	interfaces       interfaceSettings
	wire             wireSettings
	kube             kubeSettings
	nodeName         string
	cmdline          bool
	proc             string
	metrics          string
	privileges       string
	pprof            bool
	flowMetrics      string
	flowMetricsMax   int
	logLevel         string
	config           string

	flags *pflag.FlagSet
	given []given

	boot time.Time // when sysUptime of NetFlow v9 was 0, if not now
}

const defaultMetrics = "127.0.0.1:9469"

func (s *settings) addFlags(f *pflag.FlagSet) {
	f.SortFlags = false
	f.StringArrayVarP(&s.collectors, "collector", "c", nil, "send records to this collector `URL` (repeatable)")
	f.DurationVar(&s.activeTimeout, "active-timeout", time.Minute, "report a live flow at least this often")
	f.DurationVar(&s.idleTimeout, "idle-timeout", 15*time.Second, "end a flow that is not TCP after this silence")
	f.IntVar(&s.maxFlows, "max-flows", 1_000_000, "most flows kept at once; unless given, no more than the memory limit holds")
	f.StringVar(&s.memoryLimit, "memory-limit", "auto", "keep within this `SIZE`, as 512M; auto: what the control group allows; none")
	f.DurationVar(&s.snapshotInterval, "snapshot-interval", 5*time.Second, "time between two passes over all sockets")
	f.StringVar(&s.source, "source", "auto", "auto, ebpf or netlink; none with --interface")
	f.DurationVar(&s.auditInterval, "audit-interval", 2*time.Minute, "compare the eBPF view with the kernel's own list of sockets this often")
	f.StringSliceVar(&s.withoutHooks, "without-hook", nil, "do not attach this eBPF hook `NAME` (repeatable), and use the next best")
	f.StringVar(&s.direction, "direction", "biflow", "biflow: one record for both directions (RFC 5103); uniflow: one for each")
	f.StringVar(&s.localPairs, "local-pairs", "merge", "merge: one record where both ends are on this host, with both processes; separate: one for each socket")
	f.Uint32Var(&s.domain, "domain", 1, "observation domain (NetFlow v9: source id)")
	f.Uint32Var(&s.pen, "pen", 32473, "private enterprise number of the native elements")
	f.StringVar(&s.dialect, "dialect", "known", "enterprise elements: known (ntop and Antrea numbers where they exist; alias ntop), native, or iana (none)")
	f.Uint16Var(&s.v9Base, "v9-base", 30000, "first NetFlow v9 field type of the native elements")
	f.IntVar(&s.mtu, "mtu", 0, "largest UDP packet in octets; 0: the path MTU")
	f.DurationVar(&s.templateRefresh, "template-refresh", time.Minute, "resend templates over UDP this often")
	f.DurationVar(&s.reconnectMin, "reconnect-min", time.Second, "first wait before a stream collector is tried again")
	f.DurationVar(&s.reconnectMax, "reconnect-max", time.Minute, "longest wait")
	s.wire.addFlags(f)
	s.interfaces.addFlags(f)
	s.kube.addFlags(f)
	s.exporting.addFlags(f)
	s.selecting.addFlags(f)
	f.StringVar(&s.nodeName, "node-name", "", "name of this host in records (default the host name)")
	f.BoolVar(&s.cmdline, "cmdline", false, "export command lines, which may hold secrets")
	f.StringVar(&s.proc, "proc", "/proc", "where proc is mounted")
	f.StringVar(&s.metrics, "metrics", defaultMetrics, "serve Prometheus metrics at this `ADDRESS`:PORT, /metrics, /healthz and /readyz; none: do not")
	f.StringVar(&s.flowMetrics, "flow-metrics", "none", "sum up octets, connections, retransmissions and round-trip times on /metrics, by pod, container or process")
	f.IntVar(&s.flowMetricsMax, "flow-metrics-max", 1000, "most label sets of --flow-metrics; what is beyond is summed up as \"other\"")
	f.BoolVar(&s.pprof, "pprof", false, "serve profiles at /debug/pprof/ of --metrics")
	f.StringVar(&s.privileges, "privileges", privilegesDrop, "once all is attached: drop, what is not needed; least, also files (Landlock), CAP_SYS_ADMIN and CAP_SYS_PTRACE, and with them netlink in other namespaces; keep")
	f.StringVar(&s.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&s.config, "config", "", "read settings from this YAML `file` (keys are the flags' names)")
	addRuntimeFlags(f, &s.runtimes)
}

// addRuntimeFlags adds the flags that say where container runtimes are.
func addRuntimeFlags(f *pflag.FlagSet, c *runtimes.Config) {
	f.StringVar(&c.Containerd, "containerd", "auto", "containerd's `SOCKET`s, separated by commas; auto: where they usually are; none")
	f.StringVar(&c.Docker, "docker", "auto", "Docker's `SOCKET`; auto; none")
	f.StringVar(&c.CRI, "cri", "auto", "`SOCKET` of a CRI runtime that is not containerd, such as CRI-O; auto; none")
	f.StringVar(&c.Podman, "podman", "auto", "podman's `SOCKET`; auto; none")
	f.StringSliceVar(&c.Labels, "labels", []string{
		"app", "app.kubernetes.io/name", "com.docker.compose.project", "com.docker.compose.service", "com.docker.swarm.service.name",
	}, "export these labels of pods and containers, by their `KEY`s")
}

// load completes the flags by the environment and the configuration file, and checks them.
func (s *settings) load(f *pflag.FlagSet) error {
	s.remember(f)
	// set gives flag name a value unless a stronger source has.
	set := func(name, value, from string) error {
		if f.Changed(name) {
			return nil
		}
		if err := f.Set(name, value); err != nil {
			return usagef("%s: %w", from, err)
		}
		return nil
	}
	var err error
	f.VisitAll(func(fl *pflag.Flag) {
		key := "SOCKFLOW_" + strings.ToUpper(strings.ReplaceAll(fl.Name, "-", "_"))
		v, ok := os.LookupEnv(key)
		if !ok || err != nil || f.Changed(fl.Name) {
			return
		}
		if fl.Name != "collector" {
			err = set(fl.Name, v, key)
			return
		}
		for _, url := range strings.Fields(v) { // several, separated by blanks
			if err = f.Set(fl.Name, url); err != nil {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	if s.config != "" {
		if err := s.loadFile(f, set); err != nil {
			return err
		}
	}
	return s.check()
}

func (s *settings) loadFile(f *pflag.FlagSet, set func(name, value, from string) error) error {
	b, err := smallfile.Read(s.config)
	if err != nil {
		return usagef("read --config: %w", err)
	}
	var file map[string]any
	if err := yaml.Unmarshal(b, &file); err != nil {
		return usagef("read --config %s: %w", s.config, err)
	}
	for name, value := range file {
		if fl := f.Lookup(name); fl == nil || name == "config" {
			return usagef("--config %s: unknown key %q", s.config, name)
		}
		list, ok := value.([]any)
		if !ok {
			list = []any{value}
		}
		if fl := f.Lookup(name); fl.Value.Type() == "stringSlice" {
			list = []any{strings.Trim(strings.Join(strings.Fields(fmt.Sprint(list)), ","), "[]")}
		}
		if len(list) > 1 && name != "collector" && name != "filter" {
			return usagef("--config %s: %s takes one value", s.config, name)
		}
		if f.Changed(name) {
			continue
		}
		for _, v := range list {
			if name == "collector" {
				s.collectors = append(s.collectors, fmt.Sprint(v))
			} else if name == "filter" {
				s.selecting.filters = append(s.selecting.filters, fmt.Sprint(v))
			} else if err := set(name, fmt.Sprint(v), "--config "+s.config+": "+name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *settings) check() error {
	for _, e := range []struct {
		flag, value string
		allowed     []string
	}{
		{"source", s.source, []string{"auto", "ebpf", "netlink", "none"}},
		{"direction", s.direction, []string{"biflow", "uniflow"}},
		{"local-pairs", s.localPairs, []string{"separate", "merge"}},
		{"dialect", s.dialect, []string{"known", "ntop", "native", "iana"}},
		{"privileges", s.privileges, []string{privilegesDrop, privilegesLeast, privilegesKeep}},
		{"flow-metrics", s.flowMetrics, []string{"none", "pod", "container", "process"}},
		{"log-level", s.logLevel, []string{"debug", "info", "warn", "error"}},
	} {
		if !slices.Contains(e.allowed, e.value) {
			return usagef("--%s %q: must be %s", e.flag, e.value, strings.Join(e.allowed, ", "))
		}
	}
	if s.source == "none" && s.wire.iface == "" {
		return usagef("--source none: there is nothing to meter without --interface")
	}
	for _, name := range s.withoutHooks {
		if !slices.Contains(bpf.HookNames(), name) {
			return usagef("--without-hook %q: must be one of %s", name, strings.Join(bpf.HookNames(), ", "))
		}
	}
	for _, e := range []struct {
		flag  string
		value time.Duration
	}{
		{"active-timeout", s.activeTimeout},
		{"idle-timeout", s.idleTimeout},
		{"snapshot-interval", s.snapshotInterval},
		{"audit-interval", s.auditInterval},
		{"template-refresh", s.templateRefresh},
		{"reconnect-min", s.reconnectMin},
		{"reconnect-max", s.reconnectMax},
	} {
		if e.value < 100*time.Millisecond {
			return usagef("--%s %s: must be at least 100ms", e.flag, e.value)
		}
	}
	if err := s.interfaces.check(); err != nil {
		return err
	}
	if err := s.kube.check(); err != nil {
		return err
	}
	if s.reconnectMax < s.reconnectMin {
		return usagef("--reconnect-max %s: must not be less than --reconnect-min %s", s.reconnectMax, s.reconnectMin)
	}
	if err := s.exporting.check(); err != nil {
		return err
	}
	if s.flowMetricsMax < 1 {
		return usagef("--flow-metrics-max %d: must be at least 1", s.flowMetricsMax)
	}
	if err := s.selecting.check(); err != nil {
		return err
	}
	if s.maxFlows < 1 {
		return usagef("--max-flows %d: must be at least 1", s.maxFlows)
	}
	if s.memoryLimit != "auto" && s.memoryLimit != "none" {
		if n, err := ipfix.ParseSize(s.memoryLimit); err != nil || n < 1 {
			return usagef("--memory-limit %q: must be auto, none or a size as 512M", s.memoryLimit)
		}
	}
	if s.mtu != 0 && (s.mtu < 576 || s.mtu > 65535) {
		return usagef("--mtu %d: must be 0 or from 576 to 65535", s.mtu)
	}
	if s.v9Base == 0 || s.v9Base >= 32768-100 {
		return usagef("--v9-base %d: must be from 1 to %d", s.v9Base, 32768-101)
	}
	return nil
}
