package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// verdict is what a check of doctor came to.
type verdict string

const (
	good    verdict = "ok"
	note    verdict = "info"    // neither good nor bad
	reduced verdict = "reduced" // something is missing, and something else does its work or most of it
	bad     verdict = "fail"    // something is missing, and its part of the metering with it
)

var marks = map[verdict]string{good: "✓", note: "·", reduced: "!", bad: "✗"}

// check is one finding. Remedy says what to do where it is not good.
type check struct {
	Group   string  `json:"group"`
	Name    string  `json:"name"`
	Verdict verdict `json:"verdict"`
	Detail  string  `json:"detail"`
	Remedy  string  `json:"remedy,omitempty"`
}

// doctor collects findings.
type doctor struct {
	settings *settings
	testFlow bool
	group    string
	checks   []check
}

func (d *doctor) say(v verdict, name, detail string, remedy ...string) {
	c := check{Group: d.group, Name: name, Verdict: v, Detail: strings.Join(strings.Fields(detail), " ")}
	if v == bad || v == reduced {
		c.Remedy = strings.Join(remedy, " ")
	}
	d.checks = append(d.checks, c)
}

var errUnwell = errors.New("something is missing: see the lines with ✗")

func newDoctorCommand(stdout io.Writer) *cobra.Command {
	var s settings
	var asJSON, testFlow bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "try what this kernel, these privileges and runtimes allow, and say what to do",
		Long: `Tries everything that run would use with the same flags, environment and --config: each eBPF hook is attached, sockets are read,
a connection is made and looked for, runtimes and collectors are spoken to. Nothing is left attached, and nothing is changed.

✓ works   ! something else does its work   ✗ missing, with the remedy   · for information
Exit status 1 if there is a ✗.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.load(cmd.Flags()); err != nil {
				return err
			}
			d := &doctor{settings: &s, testFlow: testFlow}
			d.examine()
			return d.report(stdout, asJSON)
		},
	}
	s.addFlags(cmd.Flags())
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.Flags().BoolVar(&testFlow, "test-flow", false, "send each collector a flow from 192.0.2.1:7 to 192.0.2.2:7 (addresses for documentation, RFC 5737) of 1 octet")
	// Flags that change what is sent, but not whether it can be.
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		switch f.Name {
		case "collector", "max-flows", "memory-limit", "source", "without-hook", "proc", "metrics", "config", "json", "test-flow", "containerd", "docker", "cri", "podman", "kube":
		default:
			f.Hidden = true
		}
	})
	return cmd
}

func (d *doctor) examine() {
	for _, part := range []struct {
		group string
		try   func()
	}{
		{"Kernel", d.kernel}, {"Privileges", d.privileges}, {"Control groups", d.controlGroups}, {"eBPF hooks", d.hooks},
		{"Netlink", d.netlink}, {"Self-test", d.selfTest}, {"Not seen", d.unseen}, {"Runtimes", d.runtimes}, {"Kubernetes", d.kubernetes}, {"Collectors", d.reach},
	} {
		d.group = part.group
		part.try()
	}
}

// report prints the findings. The error is errUnwell if there is a bad one.
func (d *doctor) report(w io.Writer, asJSON bool) error {
	well := true
	for _, c := range d.checks {
		well = well && c.Verdict != bad
	}
	var err error
	if asJSON {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		e.Encode(map[string]any{"version": version, "ok": well, "checks": d.checks}) // what it encodes always can be
		_, err = w.Write(appendEscaped(nil, b.Bytes()))
	} else {
		b := bufio.NewWriter(w)
		group := ""
		for _, c := range d.checks {
			if c.Group != group {
				group = c.Group
				fmt.Fprintln(b, group)
			}
			fmt.Fprintln(b, printable(fmt.Sprintf("  %s %-30s %s", marks[c.Verdict], c.Name, c.Detail)))
			if c.Remedy != "" {
				fmt.Fprintln(b, printable(fmt.Sprintf("    %-30s → %s", "", c.Remedy)))
			}
		}
		err = b.Flush()
	}
	if err == nil && !well {
		err = errUnwell
	}
	return err
}
