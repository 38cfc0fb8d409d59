package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sockflow/sockflow/templates"
)

// elementFormats are what elements can print, in the order of its help.
var elementFormats = []struct {
	name, help string
	print      func(l *elementList, w io.Writer) error
}{
	{"table", "for people", (*elementList).table},
	{"csv", "name, type, semantics, units, IPFIX enterprise and number, NetFlow v9 type, description", (*elementList).csv},
	{"json", "the same as an array of objects", (*elementList).json},
	{"markdown", "docs/elements.md", (*elementList).markdown},
	{"xml", "registry in IANA's form: libfixbuf, ipfixDump -e, YAF, super_mediator", (*elementList).xml},
	{"goflow2", "goflow2 -mapping FILE", (*elementList).goflow2},
	{"pmacct", "nfacctd, aggregate_primitives: FILE", (*elementList).pmacct},
	{"logstash", "logstash-codec-netflow, ipfix_definitions (netflow_definitions with --netflow9)", (*elementList).logstash},
	{"filebeat", "Filebeat netflow input, custom_definitions", (*elementList).filebeat},
	{"telegraf", "Telegraf inputs.netflow, private_enterprise_number_files", (*elementList).telegraf},
	{"libfds", "ipfixcol2, /etc/libfds/user/elements/; one --enterprise a file", (*elementList).libfds},
	{"vflow", "vFlow, ipfix.elements", (*elementList).vflow},
}

// elementList is the registry under the numbers of a dialect.
type elementList struct {
	options    templates.Options
	netflow9   bool   // the definitions are for NetFlow v9, where the collector keeps them apart
	enterprise uint32 // only this enterprise; 0 all
	rows       []elementRow
}

type elementRow struct {
	templates.Element
	ipfix templates.Number
	v9    uint16 // field type of NetFlow v9, 0 none
	v9Len uint16
}

func newElementsCommand(stdout io.Writer) *cobra.Command {
	var format, dialect string
	l := &elementList{}
	var names, help []string
	for _, f := range elementFormats {
		names = append(names, f.name)
		help = append(help, fmt.Sprintf("  %-9s %s", f.name, f.help))
	}
	cmd := &cobra.Command{
		Use:   "elements [--format FORMAT]",
		Short: "the Information Elements, and configurations by which collectors name them",
		Long: "Prints the Information Elements that records are made of, or a configuration by which a collector names those it does not\n" +
			"know. Give the --dialect, --pen and --v9-base that the exporter runs with.\n\nFormats:\n" + strings.Join(help, "\n"),
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			i := slices.Index(names, format)
			if i < 0 {
				return usagef("--format %q: must be one of %s", format, strings.Join(names, ", "))
			}
			var err error
			if l.options.Dialect, err = templates.ParseDialect(dialect); err != nil {
				return usageError{err}
			}
			if l.options.PEN == 0 {
				return usagef("--pen 0: must be an enterprise number")
			}
			if l.options.V9Base == 0 || l.options.V9Base > maxV9Base {
				return usagef("--v9-base %d: must be from 1 to %d", l.options.V9Base, maxV9Base)
			}
			if err := l.load(); err != nil {
				return err
			}
			return elementFormats[i].print(l, stdout)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&format, "format", "table", "what to print, see above")
	f.StringVar(&dialect, "dialect", "known", "known, native or iana, as the exporter has it")
	f.Uint32Var(&l.options.PEN, "pen", templates.PENExample, "private enterprise number of the native elements")
	f.Uint16Var(&l.options.V9Base, "v9-base", 30000, "first NetFlow v9 field type of the native elements")
	f.BoolVar(&l.netflow9, "netflow9", false, "logstash, filebeat, pmacct: definitions for NetFlow v9")
	f.Uint32Var(&l.enterprise, "enterprise", 0, "only the elements of this enterprise `NUMBER`")
	return cmd
}

// maxV9Base leaves room below 32768, where converters to IPFIX see an enterprise bit.
const maxV9Base = 32667

func (l *elementList) load() error {
	elements, err := templates.Elements()
	if err != nil {
		return err
	}
	v9 := l.options
	v9.V9 = true
	for _, e := range elements {
		n, ok := e.Number(l.options)
		if !ok || l.enterprise != 0 && n.PEN != l.enterprise {
			continue
		}
		r := elementRow{Element: e, ipfix: n}
		if n9, ok := e.Number(v9); ok {
			r.v9, r.v9Len = n9.ID, e.Length(v9)
		}
		l.rows = append(l.rows, r)
	}
	if len(l.rows) == 0 {
		return usagef("--enterprise %d: no element of it; %s", l.enterprise, "there are 0, 29305 and those of the dialect")
	}
	return nil
}

// fixed is the length of the element's values in octets, 0 of strings.
func (r *elementRow) fixed() int {
	if n := r.Length(templates.Options{}); n != templates.Variable {
		return int(n)
	}
	return 0
}

// snake is the element's name as collectors like it: source_process_id.
func (r *elementRow) snake() string {
	var b strings.Builder
	name := strings.ReplaceAll(r.Name, "IPv", "Ipv")
	upper := func(i int) bool { return i < len(name) && name[i] >= 'A' && name[i] <= 'Z' }
	for i := range len(name) {
		if i > 0 && upper(i) && (!upper(i-1) || i+1 < len(name) && !upper(i+1)) { // a new word, also after NAT
			b.WriteByte('_')
		}
		b.WriteByte(name[i])
	}
	return strings.ToLower(b.String())
}

// enterprise reports whether a collector that knows IANA's registry does not know the element.
func (r *elementRow) enterprise() bool { return r.ipfix.PEN != templates.PENIANA }

// padding are zeros, of any length: no collector has a column for them, and some fail where they take them for a number.
func (r *elementRow) padding() bool { return r.Name == "paddingOctets" }

// reporting are elements that only options records carry: they describe templates and the exporter, not flows.
func (r *elementRow) reporting() bool {
	switch {
	case r.Native >= 80, r.IANA == 10, r.IANA == 34, r.IANA == 35, r.IANA >= 40 && r.IANA <= 42, r.IANA == 82, r.IANA == 85, r.IANA == 86, r.IANA == 94, r.IANA == 135,
		r.IANA >= 143 && r.IANA <= 149, r.IANA == 234, r.IANA >= 160 && r.IANA <= 173, r.IANA >= 302 && r.IANA <= 346, r.IANA == 368:
		return true
	}
	return false
}

// enterprises lists the enterprises of the list, in its order.
func (l *elementList) enterprises() []uint32 {
	var pens []uint32
	for _, r := range l.rows {
		if !slices.Contains(pens, r.ipfix.PEN) {
			pens = append(pens, r.ipfix.PEN)
		}
	}
	return pens
}
