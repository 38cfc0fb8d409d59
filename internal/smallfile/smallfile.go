// Package smallfile reads the files that settings name: configurations, keys, certificates, tokens. Whoever names another file by mistake, or
// one that has no end, gets an error.
package smallfile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Most is what a file may have, in octets.
	Most = 8 << 20
	// patience is how long a pipe, of a shell's <(COMMAND) say, may give nothing.
	patience = 10 * time.Second
)

// Read reads a file of at most Most octets, or a pipe. It does not wait for a writer to open a pipe.
func Read(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch mode := st.Mode(); {
	case mode.IsRegular(), mode&os.ModeCharDevice != 0: // /dev/null is an empty file
	case mode.IsDir():
		return nil, &os.PathError{Op: "read", Path: name, Err: unix.EISDIR}
	case mode&os.ModeNamedPipe != 0:
		if err := f.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("%s is no file that can be read", name)
	}
	b, err := io.ReadAll(io.LimitReader(f, Most+1))
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, fmt.Errorf("%s: nothing came for %s", name, patience)
	case err == nil && len(b) > Most:
		return nil, fmt.Errorf("%s has more than %d octets", name, Most)
	}
	return b, err
}
