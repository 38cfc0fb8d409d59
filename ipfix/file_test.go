package ipfix

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// files returns what the files of a folder hold, oldest first.
func files(t *testing.T, pattern string) [][]byte {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(names)
	var l [][]byte
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		l = append(l, b)
	}
	return l
}

// TestFile: each file is whole by itself, and together they have every record. A file that is there is put aside.
func TestFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "flows.ipfix")
	if err := os.WriteFile(path, []byte("of another program"), 0o600); err != nil {
		t.Fatal(err)
	}
	x := begin(t, "file:"+path+"?rotate=100k&fsync=message", Config{})
	for range 20 {
		x.give(200)
		eventually(t, "they are written", func() bool { return x.Stats().Encoded == uint64(x.next) })
	}
	x.stop()
	x.balance()
	var all []int
	n := 0
	for _, b := range files(t, filepath.Join(dir, "*")) {
		if string(b) == "of another program" {
			continue
		}
		n++
		if len(b) > 100<<10+maxStream {
			t.Errorf("a file of %d octets", len(b))
		}
		ipfixDump(t, b)
		all = append(all, numbers(t, b)...)
	}
	slices.Sort(all) // names of one second are not in order
	if len(all) != x.next || all[0] != 0 || all[len(all)-1] != x.next-1 || n < 5 {
		t.Errorf("%d records in %d files", len(all), n)
	}
	if len(files(t, filepath.Join(dir, "*"))) != n+1 {
		t.Error("the file that was there is gone")
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the last file is not finished")
	}
}

// TestFileByTime: another file begins by the clock, and no more are kept than wanted.
func TestFileByTime(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	x := begin(t, "file:"+filepath.Join(dir, "f.ipfix")+"?rotate=1s&keep=2", Config{})
	for range 45 {
		x.give(1)
		time.Sleep(100 * time.Millisecond)
	}
	x.stop()
	if n := len(files(t, filepath.Join(dir, "*"))); n != 2 {
		t.Errorf("%d files are kept", n)
	}
	x.balance()
}

// TestFullFile: a device that takes nothing loses records, which are counted and said; the file stays whole.
func TestFullFile(t *testing.T) {
	if os.Geteuid() != 0 {
		miss(t, "needs root to mount")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=200k"); err != nil {
		miss(t, "cannot mount: "+err.Error())
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	path := filepath.Join(dir, "f.ipfix")
	x := begin(t, "file:"+path, Config{})
	x.give(2000)
	x.said("no space left on device")
	x.stop()
	x.balance()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for rest := b; len(rest) > 0; {
		n := messageLength(rest)
		if n == 0 || n > len(rest) {
			t.Fatal("the file ends within a message")
		}
		rest = rest[n:]
	}
	if st := x.Stats(); st.DroppedSend == 0 || st.DroppedSend+st.Records != st.Made {
		t.Errorf("%+v", st)
	}
}

// TestClockSteps: files that would have the name of another, because the clock went back, do not replace it; and no file is written for want
// of a folder, which is said.
func TestClockSteps(t *testing.T) {
	dir := t.TempDir()
	cfg, err := ParseURL("file:"+filepath.Join(dir, "f.ipfix")+"?rotate=64k", Config{})
	if err != nil {
		t.Fatal(err)
	}
	x, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w := x.direct.(*file)
	for range 5 {
		if err := w.open(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.begin = time.Unix(1_700_000_000, 0) // always the same second
		if err := w.send([]byte("message"), 1); err != nil {
			t.Fatal(err)
		}
		if err := w.close(); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(files(t, filepath.Join(dir, "*"))); n != 5 {
		t.Errorf("%d files", n)
	}
	lost := begin(t, "file:/no/such/folder/f", Config{})
	lost.said("no such file")
	if !strings.Contains(lost.text(), "trying again") {
		t.Errorf("%q", lost.text())
	}
}

// TestFileThroughLink: old data behind a symbolic link is put aside beside it, not overwritten; one that leads nowhere yet is written where it leads.
func TestFileThroughLink(t *testing.T) {
	for _, old := range []string{"of another program, and longer than a template", ""} {
		dir, elsewhere := t.TempDir(), t.TempDir()
		target, link := filepath.Join(elsewhere, "data.ipfix"), filepath.Join(dir, "flows.ipfix")
		if old != "" {
			if err := os.WriteFile(target, []byte(old), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink(target, link); err != nil {
			t.Fatal(err)
		}
		x := begin(t, "file:"+link, Config{})
		x.give(100)
		x.stop()
		x.balance()
		if st, err := os.Lstat(link); err != nil || st.Mode()&os.ModeSymlink == 0 {
			t.Errorf("the link: %v", err)
		}
		b, err := os.ReadFile(target)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(numbers(t, b)); n != 100 {
			t.Errorf("%d records", n)
		}
		aside := files(t, filepath.Join(elsewhere, "data-*.ipfix"))
		if want := 1; old != "" && (len(aside) != want || string(aside[0]) != old) || old == "" && len(aside) > 0 {
			t.Errorf("put aside: %q", aside)
		}
	}
	loop := filepath.Join(t.TempDir(), "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	begin(t, "file:"+loop, Config{}).said("too many levels of symbolic links")
}

// TestFileOfManyTemplates: a file is not finished before it has records, though its templates alone are as long as it is to be.
func TestFileOfManyTemplates(t *testing.T) {
	dir := t.TempDir()
	cfg, err := ParseURL("file:"+filepath.Join(dir, "f.ipfix")+"?rotate=64k", Config{})
	if err != nil {
		t.Fatal(err)
	}
	x, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	w := x.direct.(*file)
	if err := w.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if err := w.send(make([]byte, 2000), 0); err != nil {
			t.Fatalf("%d octets of templates: %v", w.size, err)
		}
	}
	finished := false
	for range 40 {
		finished = errors.Is(w.send(make([]byte, 2000), 10), errRotated) || finished
	}
	if !finished {
		t.Error("the file is not finished")
	}
	w.close()
}

// TestFileOptions: options of a file that is being written change, and no file gets the place of another.
func TestFileOptions(t *testing.T) {
	dir := t.TempDir()
	url := "file:" + filepath.Join(dir, "f.ipfix")
	x := begin(t, url+"?rotate=64k", Config{})
	for _, query := range []string{"?rotate=100k", "?rotate=64k&keep=1000", "?rotate=1h", "?rotate=64k&domain=7", "?rotate=64k&fields=-sourceProcessName", "?rotate=64k&fsync=never"} {
		x.give(500)
		if err := x.option(url+query, Config{}); err != nil {
			t.Errorf("%s: %v", query, err)
		}
		x.give(500)
		eventually(t, "they are written", func() bool { return x.Stats().Encoded == uint64(x.next) })
	}
	x.stop()
	x.balance()
	var all []int
	for _, b := range files(t, filepath.Join(dir, "*")) {
		checkStream(t, b)
		all = append(all, numbers(t, b)...)
	}
	slices.Sort(all)
	if len(slices.Compact(all)) != x.next {
		t.Errorf("%d records of %d", len(all), x.next)
	}
	if st := x.Stats(); st.DroppedSend+st.DroppedQueue > 0 || len(x.lines) > 0 {
		t.Errorf("%+v, %q", st, x.lines)
	}
}
