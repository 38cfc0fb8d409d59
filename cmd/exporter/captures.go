package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"syscall"
	"time"

	"github.com/sockflow/sockflow/replay"
)

// captures reads files one after the other. Its methods but read and total are for one goroutine.
type captures struct {
	files  []string
	log    *slog.Logger
	ctx    context.Context
	quit   *os.File // readable when ctx has ended
	meter  *replay.Meter
	file   *countingReader // the one that is open
	reader *replay.Reader
	ahead  bool // packet holds the next one
	packet replay.Packet
	opened int
	failed error // the first failure; what could be read was
	total  int64 // octets of all files; 0 if that is not known
	read   *readCount

	idle      time.Duration
	speed     float64
	began     time.Time // when the packet of the time origin was due
	origin    int64
	checkTime bool // the next packet is the first of a file
}

// openCaptures looks at all files and reads the first packet, so that what can fail fails at once.
func openCaptures(ctx context.Context, files []string, speed float64, log *slog.Logger) (*captures, error) {
	quit, end, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { end.Close() })
	c := &captures{files: files, speed: speed, log: log, ctx: ctx, quit: quit, read: new(readCount)}
	if err := c.begin(); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// begin checks the names and reads the first packet.
func (c *captures) begin() error {
	for _, name := range c.files {
		if name == "-" {
			c.total = -1
			continue
		}
		st, err := os.Stat(name)
		if err == nil && st.IsDir() {
			err = errors.New("it is a directory")
		}
		if err != nil {
			return fmt.Errorf("read capture %s: %w", name, reasonOf(err))
		}
		if !st.Mode().IsRegular() {
			c.total = -1
		} else if c.total >= 0 {
			c.total += st.Size()
		}
	}
	err := c.advance()
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if c.opened == len(c.files) && c.reader == nil && c.failed != nil && c.packet.Data == nil {
		return c.failed // nothing could be read at all
	}
	return nil
}

// reasonOf is the innermost of a path error, which repeats the path.
func reasonOf(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// firstTime is the time of the first packet, or now if there is none.
func (c *captures) firstTime() int64 {
	if c.ahead {
		return c.packet.Time
	}
	return time.Now().UnixNano()
}

// advance reads the next packet, of this file or a later one, into packet. A file that is damaged ends where the damage is.
func (c *captures) advance() error {
	for {
		if c.reader == nil {
			if c.opened == len(c.files) {
				return io.EOF
			}
			if err := c.open(c.files[c.opened]); c.ctx.Err() != nil {
				c.closeFile()
				return io.EOF
			} else if err != nil {
				c.fail(c.files[c.opened], err)
				c.closeFile()
			}
			c.opened++
			continue
		}
		err := c.reader.Next(&c.packet)
		if err == nil {
			c.ahead = true
			return nil
		}
		if c.ctx.Err() != nil {
			c.closeFile()
			return io.EOF // it was not the capture that ended
		}
		if !errors.Is(err, io.EOF) {
			c.fail(c.files[c.opened-1], err)
		}
		c.closeFile()
	}
}

func (c *captures) open(name string) error {
	f := os.Stdin
	if name != "-" {
		var err error
		if f, err = os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0); err != nil { // a named pipe may have no writer yet
			return reasonOf(err)
		}
	}
	c.file = &countingReader{f: f, n: c.read, quit: c.quit}
	r, err := replay.NewReader(c.file)
	if err != nil {
		return err
	}
	c.reader, c.checkTime = r, true
	return nil
}

func (c *captures) closeFile() {
	if c.reader != nil {
		c.reader.Close()
	}
	if c.file != nil && c.file.f != os.Stdin {
		c.file.f.Close()
	}
	c.reader, c.file = nil, nil
}

func (c *captures) close() {
	c.closeFile()
	c.quit.Close()
}

// fail notes why a file could not be read to its end. The first reason is the command's; others are logged.
func (c *captures) fail(name string, err error) {
	err = fmt.Errorf("read capture %s: %w", name, err)
	if c.failed == nil {
		c.failed = err
	} else {
		c.log.Warn(err.Error())
	}
}

// next is what the meter reads.
func (c *captures) next(p *replay.Packet) error {
	if c.ctx.Err() != nil {
		return io.EOF // interrupted: what was read so far is reported
	}
	if !c.ahead {
		if err := c.advance(); err != nil {
			return err
		}
	}
	if c.checkTime {
		c.checkTime = false
		if clock := c.meter.Clock(); clock != 0 && clock-c.packet.Time > int64(c.idle) {
			c.meter.Restart() // a capture that is older than the one before
			c.origin = 0
		}
	}
	if c.speed > 0 && !c.due(p) {
		return replay.ErrIdle
	}
	*p = c.packet
	c.ahead = false
	return nil
}

// due waits for the time of the packet, but not for long; if it is not reached p has the time that is.
func (c *captures) due(p *replay.Packet) bool {
	const doze = 50 * time.Millisecond
	if c.origin == 0 {
		c.began, c.origin = time.Now(), c.packet.Time
	}
	const century = 1e9 * 3600 * 24 * 36525 // what a Duration holds
	wait := time.Until(c.began.Add(time.Duration(min(float64(c.packet.Time-c.origin)/c.speed, century))))
	if wait <= 0 {
		return true
	}
	time.Sleep(min(wait, doze))
	if wait <= doze {
		return true
	}
	p.Time = c.origin + int64(float64(time.Since(c.began))*c.speed)
	return false
}
