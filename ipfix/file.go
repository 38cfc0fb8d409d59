package ipfix

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// file writes messages to a file (RFC 5655), and begins another one by size or time. Each is whole by itself: it begins with the
// templates. The file being written has the name that was asked for; a finished one has the time of its begin in it.
type file struct {
	x     *Exporter
	f     *os.File
	path  string // of f, with no symbolic link at its end
	size  int64
	head  int64 // octets before the first flow record: templates; negative while there is none
	plain bool  // a regular file: it can be renamed and cut
	begin time.Time
	dirty time.Time // of the oldest message that is not synced; zero if there is none
}

var errRotated = errors.New("the file is full")

func (w *file) open(context.Context) error {
	path, err := throughLinks(w.x.conf().Address)
	if err != nil {
		return err
	}
	w.path = path
	if st, err := os.Lstat(path); err == nil && st.Mode().IsRegular() && st.Size() > 0 {
		// Of a run before. Another session in the same file would begin its sequence in the middle.
		if err := w.putAside(st.ModTime()); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|unix.O_NOFOLLOW, 0o640)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil && st.Mode().IsRegular() && st.Size() > 0 {
		err = errors.New("another program writes it")
	}
	if err != nil {
		f.Close()
		return err
	}
	w.f, w.size, w.head, w.plain, w.begin, w.dirty = f, 0, -1, st.Mode().IsRegular(), time.Now(), time.Time{}
	return nil
}

// throughLinks is the path that symbolic links at the end of path lead to; it need not exist.
func throughLinks(path string) (string, error) {
	for range 40 { // as path_resolution(7)
		to, err := os.Readlink(path)
		if err != nil {
			return path, nil // no link
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		path = to
	}
	return "", fmt.Errorf("%s: %w", path, syscall.ELOOP)
}

func (w *file) limit() int            { return maxStream }
func (w *file) dead() <-chan struct{} { return nil }
func (w *file) address() net.Addr     { return nil }

// renew is called by the clock.
func (w *file) renew() bool {
	return w.plain && w.x.conf().RotateTime > 0 && time.Since(w.begin) >= w.x.conf().RotateTime && w.size > 0
}

func (w *file) send(msg []byte, records int) error {
	if _, err := w.f.Write(msg); err != nil {
		w.x.droppedSend.Add(uint64(records))
		if w.plain { // no part of a message may stay
			w.f.Truncate(w.size)
			w.f.Seek(w.size, 0)
		}
		return err
	}
	if records > 0 && w.head < 0 {
		w.head = w.size
	}
	w.size += int64(len(msg))
	if w.dirty.IsZero() {
		w.dirty = time.Now()
	}
	w.x.sent(len(msg), records)
	// Templates alone may be larger than a file is to be.
	if w.plain && w.x.conf().RotateSize > 0 && w.head >= 0 && w.size-w.head >= w.x.conf().RotateSize {
		return errRotated
	}
	return nil
}

func (w *file) flush() error {
	if !w.dirty.IsZero() && w.x.conf().Sync > 0 && time.Since(w.dirty) >= w.x.conf().Sync {
		w.dirty = time.Time{}
		return w.f.Sync()
	}
	return nil
}

func (w *file) close() error {
	var err error
	if w.plain && w.x.conf().Sync >= 0 {
		err = w.f.Sync()
	}
	err = errors.Join(err, w.f.Close())
	if w.plain && (w.x.conf().RotateSize > 0 || w.x.conf().RotateTime > 0) {
		err = errors.Join(err, w.putAside(w.begin))
	}
	return err
}

// putAside gives the file its final name, which no other file has, however clocks go.
func (w *file) putAside(begin time.Time) error {
	ext := filepath.Ext(w.path)
	stem := strings.TrimSuffix(w.path, ext) + "-" + begin.UTC().Format("20060102T150405Z")
	for i := 1; ; i++ {
		name := stem + ext
		if i > 1 {
			name = fmt.Sprintf("%s.%d%s", stem, i, ext)
		}
		// Made here, the name is ours to rename over. Not every file system has hard links.
		f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
		if errors.Is(err, os.ErrExist) && i < 1000 {
			continue
		}
		if err != nil {
			return err
		}
		f.Close()
		if err := os.Rename(w.path, name); err != nil {
			os.Remove(name)
			return err
		}
		return w.prune()
	}
}

// prune removes the oldest finished files beyond the number to keep.
func (w *file) prune() error {
	keep := w.x.conf().Keep
	if keep == 0 {
		return nil
	}
	path := w.path
	ext := filepath.Ext(path)
	stem := strings.TrimSuffix(filepath.Base(path), ext) + "-"
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return err
	}
	type finished struct {
		name string
		time time.Time
	}
	var files []finished
	for _, e := range entries {
		n, ok := strings.CutPrefix(e.Name(), stem)
		if n, ok2 := strings.CutSuffix(n, ext); ok && ok2 && len(n) >= 16 {
			if _, err := time.Parse("20060102T150405Z", n[:16]); err != nil {
				continue
			}
			if st, err := e.Info(); err == nil {
				files = append(files, finished{e.Name(), st.ModTime()})
			}
		}
	}
	slices.SortFunc(files, func(a, b finished) int { return a.time.Compare(b.time) })
	for ; len(files) > keep; files = files[1:] {
		if err := os.Remove(filepath.Join(filepath.Dir(path), files[0].name)); err != nil {
			return err
		}
	}
	return nil
}
