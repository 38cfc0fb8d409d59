// Command exporter meters the sockets of this host and exports flow records that name the process, user and container
// of each flow. See docs/architecture.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// version is set by the linker.
var version = "dev"

func main() {
	// A write to a pipe that has no reader any more fails with EPIPE, and does not end the program: other collectors go on.
	signal.Ignore(syscall.SIGPIPE)
	os.Exit(executeIn(context.WithValue(context.Background(), wholeProcess{}, true), os.Args, os.Stdout, os.Stderr))
}

// wholeProcess is the key of a context in which a command is all that its process does, so that it may give up what others would need.
type wholeProcess struct{}

// usageError is a wrong command line, configuration or environment: exit status 2.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// execute runs the command line and returns the exit status: 0, 1 for a failure, 2 for wrong usage.
func execute(args []string, stdout, stderr io.Writer) int {
	return executeIn(context.Background(), args, stdout, stderr)
}

func executeIn(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	name := filepath.Base(args[0])
	cmd := newCommand(name, stdout, stderr)
	cmd.SetArgs(args[1:])
	err := cmd.ExecuteContext(ctx)
	if err == nil || errors.Is(err, syscall.EPIPE) { // the reader of the output has seen enough
		return 0
	}
	// One line, whatever a library put into its error.
	fmt.Fprintf(newLogWriter(stderr), "%s: %s\n", name, printable(strings.Join(strings.Fields(err.Error()), " ")))
	var usage usageError
	if errors.As(err, &usage) {
		return 2
	}
	return 1
}

func newCommand(name string, stdout, stderr io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:   name + " [run] [-c URL]...",
		Short: "meter this host's sockets and export flow records that name process and container",
		Long: `Meters the sockets of this host and exports IPFIX or NetFlow v9 flow records that name the process, user and container
behind each end. Without -c, records are printed: a table on a terminal, JSON lines otherwise.

Collector URLs: udp://host:4739  tcp://host:4739  tls://host:4740  dtls://host:4740  sctp://host:4739  netflow9+udp://host:2055
  file:PATH  zmq://host:5556  json:-  json:PATH?style=ntop
Their options: ?template-refresh=60s&mtu=1400&dialect=known|native|iana&direction=biflow|uniflow&domain=1&filter=EXPR
  TLS, DTLS: ca=FILE&cert=FILE&key=FILE&server-name=NAME   files: rotate=100M&rotate=1h&keep=24&fsync=close|message|1s|never`,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noArgs,
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usagef("%w; see %s --help", err, cmd.CommandPath()) })
	root.CompletionOptions.HiddenDefaultCmd = true

	var rootSettings, runSettings settings
	rootSettings.addFlags(root.Flags())
	root.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := rootSettings.load(cmd.Flags()); err != nil {
			return err
		}
		return run(&rootSettings, stdout, stderr)
	}
	runCmd := &cobra.Command{
		Use: "run [-c URL]...", Short: "meter this host (the default)", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := runSettings.load(cmd.Flags()); err != nil {
				return err
			}
			return run(&runSettings, stdout, stderr)
		},
	}
	runSettings.addFlags(runCmd.Flags())
	root.AddCommand(runCmd, newListCommand(stdout, stderr), newElementsCommand(stdout), newDoctorCommand(stdout), newManCommand(), newTopCommand(stdout, stderr), newCollectCommand(stdout, stderr), newReplayCommand(stdout, stderr))
	return root
}

func noArgs(cmd *cobra.Command, args []string) error {
	if err := apartFromFlag(cmd, args); err != nil {
		return err
	}
	if len(args) > 0 {
		return usagef("unknown command %q; see %s --help", args[0], cmd.Root().Name())
	}
	return nil
}

// apartFromFlag finds the value of a flag that may stand without one, where it is written apart: it would be an
// argument of the command.
func apartFromFlag(cmd *cobra.Command, args []string) (err error) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if f.NoOptDefVal == "" || f.Value.Type() != "duration" {
			return
		}
		for _, a := range args {
			if _, bad := time.ParseDuration(a); bad != nil {
				continue
			}
			if _, bad := os.Stat(a); bad != nil {
				err = usagef("--%s %s: write --%s=%s", f.Name, a, f.Name, a)
			}
		}
	})
	return err
}
