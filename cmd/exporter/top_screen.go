package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gdamore/tcell/v2"
)

// topUI is the state of the screen.
type topUI struct {
	screen tcell.Screen
	model  *topModel
	notes  *lastNotes
	stack  []topLevel // the way down; the last is shown
	flows  []topFlow
	rows   []topRow
	order  topOrder
	filter string
	typing bool // the filter
	frozen bool
	stale  bool // rows are not what was asked for last
	help   bool
	tree   bool
}

// topLevel is a view and what it is of.
type topLevel struct {
	view   *topView
	scope  topScope
	chosen string // id of the row under the cursor
	cursor int
	offset int // of the first row shown
}

const topHelp = `1 2 3 4      flows, processes, containers, pods
enter        what is in this line: of a pod its containers, then processes, then flows
esc          back
up down pgup pgdn home end    move
< >          order by the column to the left, right
r            reverse the order
t            processes below their parents
/            show lines that contain a text; enter to keep, esc to end it
space        freeze, and go on
h            this
q            quit`

func openScreen() (tcell.Screen, error) {
	screen, err := tcell.NewScreen()
	if err == nil {
		err = screen.Init()
	}
	if err != nil {
		return nil, fmt.Errorf("open the terminal: %w; top --batch needs none", err)
	}
	return screen, nil
}

// topScreen shows the model until q, a signal, or the end of the metering.
func topScreen(ctx context.Context, screen tcell.Screen, m *topModel, o *topOptions, notes *lastNotes, metering <-chan error) error {
	u := &topUI{screen: screen, model: m, notes: notes, stack: []topLevel{{view: viewNamed(o.view)}}, order: topOrder{column: -1}, filter: o.filter, tree: o.tree}
	events, quit := make(chan tcell.Event, 16), make(chan struct{})
	defer close(quit)
	go screen.ChannelEvents(events, quit) // ends with quit
	ready := m.started
	tick := time.NewTimer(time.Hour)
	defer tick.Stop()
	u.draw()
	for n := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case err := <-metering:
			return meteringEnded{err}
		case ev, ok := <-events:
			if !ok {
				return nil
			}
			// All that waits, and then one picture.
			for ; ev != nil; ev = next(events) {
				switch ev := ev.(type) {
				case *tcell.EventKey:
					if u.key(ev) {
						return nil
					}
				case *tcell.EventResize:
					screen.Sync()
				}
			}
			u.draw()
		case <-ready:
			ready = nil
			tick.Reset(o.first())
		case <-tick.C:
			u.refresh()
			u.draw()
			tick.Reset(o.interval) // from now: where a picture takes long, keys have their turn
			if n++; o.rounds != 0 && n >= o.rounds {
				return nil
			}
		}
	}
}

// next returns an event that waits, or nil.
func next(events <-chan tcell.Event) tcell.Event {
	select {
	case ev := <-events:
		return ev
	default:
		return nil
	}
}

func (u *topUI) level() *topLevel { return &u.stack[len(u.stack)-1] }

// refresh takes a new picture, if it is not frozen.
func (u *topUI) refresh() {
	if !u.frozen {
		u.flows = u.model.snapshot(time.Now().UnixNano())
	}
	u.stale = true
}

// arrange makes the lines, if they are stale, and keeps the cursor at its row.
func (u *topUI) arrange() {
	if !u.stale {
		return
	}
	u.stale = false
	l := u.level()
	u.rows = l.view.arrange(u.flows, l.scope, u.filter, u.order, u.tree, u.model.proc)
	if i := slices.IndexFunc(u.rows, func(r topRow) bool { return r.id == l.chosen }); i >= 0 {
		l.cursor = i
	}
	u.move(0)
}

// move moves the cursor by n rows, and the rows so that it is seen.
func (u *topUI) move(n int) {
	u.arrange()
	l := u.level()
	l.cursor = max(0, min(l.cursor+n, len(u.rows)-1))
	l.offset = max(0, min(l.offset, l.cursor), l.cursor-u.height()+1)
	if l.cursor < len(u.rows) {
		l.chosen = u.rows[l.cursor].id
	}
}

// height is how many rows the screen shows, beside two lines above and two below.
func (u *topUI) height() int {
	_, h := u.screen.Size()
	return max(h-4, 1)
}

// show goes to a view of everything.
func (u *topUI) show(name string) {
	u.stack = []topLevel{{view: viewNamed(name)}}
	u.order = topOrder{column: -1}
	u.stale = true
}

// key handles a key; true ends the program.
func (u *topUI) key(ev *tcell.EventKey) bool {
	if u.typing {
		switch ev.Key() {
		case tcell.KeyEnter, tcell.KeyCtrlJ:
			u.typing = false
		case tcell.KeyEscape:
			u.typing, u.filter = false, ""
		case tcell.KeyBackspace, tcell.KeyBackspace2:
			if r := []rune(u.filter); len(r) > 0 {
				u.filter = string(r[:len(r)-1])
			}
		case tcell.KeyCtrlC:
			return true
		case tcell.KeyRune:
			u.filter += string(ev.Rune())
		}
		u.stale = true
		return false
	}
	if u.help {
		u.help = false
		return ev.Key() == tcell.KeyCtrlC
	}
	switch ev.Key() {
	case tcell.KeyCtrlC:
		return true
	case tcell.KeyUp:
		u.move(-1)
	case tcell.KeyDown:
		u.move(1)
	case tcell.KeyPgUp:
		u.move(-u.height())
	case tcell.KeyPgDn:
		u.move(u.height())
	case tcell.KeyHome:
		u.move(-len(u.rows))
	case tcell.KeyEnd:
		u.move(len(u.rows))
	case tcell.KeyEnter, tcell.KeyCtrlJ:
		u.enter()
	case tcell.KeyEscape, tcell.KeyBackspace, tcell.KeyBackspace2:
		if len(u.stack) > 1 {
			u.stack = u.stack[:len(u.stack)-1]
			u.order = topOrder{column: -1}
			u.stale = true
		} else if u.filter != "" {
			u.filter = ""
			u.stale = true
		}
	case tcell.KeyRune:
		return u.rune(ev.Rune())
	}
	return false
}

func (u *topUI) rune(r rune) bool {
	switch r {
	case 'q':
		return true
	case '1', '2', '3', '4':
		u.show(topViews[r-'1'].name)
	case 'j':
		u.move(1)
	case 'k':
		u.move(-1)
	case '<', ',':
		u.order.column = max(u.order.column-1, -1)
	case '>', '.':
		u.order.column = min(u.order.column+1, len(u.level().view.columns)-1)
	case 'r':
		u.order.reverse = !u.order.reverse
	case 't':
		u.tree = !u.tree
	case '/':
		u.typing = true
	case ' ':
		u.frozen = !u.frozen
	case 'h', '?':
		u.help = true
	}
	u.stale = true
	return false
}

// enter opens what is in the row under the cursor.
func (u *topUI) enter() {
	u.arrange()
	l := u.level()
	if l.view.inner == "" || l.cursor >= len(u.rows) || u.rows[l.cursor].scope == (topScope{}) {
		return
	}
	u.stack = append(u.stack, topLevel{view: viewNamed(l.view.inner), scope: u.rows[l.cursor].scope})
	u.order = topOrder{column: -1}
	u.stale = true
}

// draw draws everything. Only attributes, no colours: it looks the same on every terminal.
func (u *topUI) draw() {
	u.arrange()
	plain, bold, inverse := tcell.StyleDefault, tcell.StyleDefault.Bold(true), tcell.StyleDefault.Reverse(true)
	u.screen.Clear()
	w, h := u.screen.Size()
	l := u.level()
	where := l.view.name
	for _, s := range []string{l.scope.pod, l.scope.container} {
		if s != "" {
			where += " of " + s
		}
	}
	if l.scope.pid != 0 {
		where += fmt.Sprintf(" of process %d", l.scope.pid)
	}
	if u.frozen {
		where += "  FROZEN"
	}
	u.text(0, 0, w, bold, where+"  "+summary(u.flows))
	if u.help {
		for i, line := range strings.Split(topHelp, "\n") {
			u.text(0, 2+i, w, plain, line)
		}
		u.screen.Show()
		return
	}
	widths := l.view.widths(w)
	u.text(0, 1, w, inverse, fit(l.view.line(nil, widths, u.order), w, false))
	for i := 0; i < u.height() && l.offset+i < len(u.rows); i++ {
		style := plain
		line := l.view.line(&u.rows[l.offset+i], widths, u.order)
		if l.offset+i == l.cursor {
			style, line = inverse, fit(line, w, false)
		}
		u.text(0, 2+i, w, style, line)
	}
	if l.cursor < len(u.rows) {
		u.text(0, h-2, w, plain, u.rows[l.cursor].detail())
	}
	switch {
	case u.typing:
		u.text(0, h-1, w, bold, "filter: "+u.filter+"_")
	case u.filter != "":
		u.text(0, h-1, w, bold, "filter: "+u.filter+"   esc: all")
	case u.notes.String() != "":
		u.text(0, h-1, w, plain, "note: "+u.notes.String())
	default:
		u.text(0, h-1, w, plain, "1 flows 2 processes 3 containers 4 pods  enter open  / filter  h help  q quit")
	}
	u.screen.Show()
}

// text writes a line; a rune takes a cell.
func (u *topUI) text(x, y, width int, style tcell.Style, s string) {
	for _, r := range printable(s) {
		if x >= width {
			return
		}
		u.screen.SetContent(x, y, r, nil, style)
		x++
	}
}
