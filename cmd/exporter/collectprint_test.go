package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/sockflow/sockflow/collector"
)

// decodeEach gives each the records of n messages, which are numbered; one has a list, one is options data.
func decodeEach(t *testing.T, n int, each func([]collector.Record) error) error {
	t.Helper()
	s, err := collector.NewSession(collector.Config{})
	if err != nil {
		t.Fatal(err)
	}
	b := &box{version: 10, templates: map[uint16]string{}}
	messages := [][]byte{b.message(0, b.template(256, "148/8 82/v"), b.template(257, "148/8 291/v"), b.options(258, "148/8", "82/v"))}
	for i := range n {
		number := func(j int) map[string][]byte {
			return map[string][]byte{"148/8": binary.BigEndian.AppendUint64(nil, uint64(10*i+j))}
		}
		list := number(4)
		list["291/v"] = []byte{3, 0, 7, 0, 2, 0, byte(i), 0, 80} // ports
		messages = append(messages, b.message(4,
			setOf(256, append(b.record(256, i, number(1)), b.record(256, i, number(2))...)), setOf(258, b.record(258, i, number(3))), setOf(257, b.record(257, i, list))))
	}
	for _, m := range messages {
		records, err := s.Decode(m, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := each(records); err != nil {
			return err
		}
	}
	return nil
}

// slowWriter lets others run between its writes.
type slowWriter struct{ bytes.Buffer }

func (w *slowWriter) Write(b []byte) (int, error) {
	time.Sleep(10 * time.Microsecond)
	return w.Buffer.Write(b)
}

// TestRecordPrinter: records formatted by several goroutines come out in their order, each once, as one goroutine formats them.
func TestRecordPrinter(t *testing.T) {
	for _, options := range []bool{false, true} {
		var want []byte
		if err := decodeEach(t, 3000, func(records []collector.Record) error {
			for i := range records {
				if !records[i].Template.Options || options {
					want = formatLines(want, records[i:i+1])
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		var out slowWriter
		p := newRecordPrinter(&out, formatLines, 4, options, nil)
		if err := decodeEach(t, 3000, p.print); err != nil {
			t.Fatal(err)
		}
		if err := p.close(); err != nil {
			t.Fatal(err)
		}
		lines := 9000
		if options {
			lines += 3000
		}
		if !bytes.Equal(out.Bytes(), want) || bytes.Count(want, []byte("\n")) != lines {
			t.Errorf("options %v: %d octets, want %d", options, out.Len(), len(want))
		}
	}
}

// TestRecordPrinterFails: an output that fails ends the reading with its error, and one that takes nothing holds it up until quit is closed.
func TestRecordPrinterFails(t *testing.T) {
	full := errors.New("disk full")
	r, w := io.Pipe()
	r.CloseWithError(full)
	p := newRecordPrinter(w, formatLines, 2, false, nil)
	if err := decodeEach(t, 100_000, p.print); err != full {
		t.Errorf("print: %v", err)
	}
	if err := p.close(); err != full {
		t.Errorf("close: %v", err)
	}

	r, w = io.Pipe() // without a reader
	defer r.Close()
	quit := make(chan struct{})
	p = newRecordPrinter(w, formatLines, 2, false, quit)
	n := 0
	err := decodeEach(t, 100_000, func(records []collector.Record) error {
		if n++; n == 10 {
			time.AfterFunc(10*time.Millisecond, func() { close(quit) })
		}
		return p.print(records)
	})
	if err != errStopped {
		t.Errorf("print: %v", err)
	}
	if err := p.close(); err != nil {
		t.Errorf("close: %v", err)
	}
}
