package main

import (
	"encoding/csv"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"

	"github.com/sockflow/sockflow/templates"
)

// number is PEN:id, or the id alone of IANA's.
func (r *elementRow) number() string {
	if r.ipfix.PEN == templates.PENIANA {
		return strconv.Itoa(int(r.ipfix.ID))
	}
	return fmt.Sprintf("%d:%d", r.ipfix.PEN, r.ipfix.ID)
}

func (r *elementRow) v9Text() string {
	if r.v9 == 0 {
		return ""
	}
	return strconv.Itoa(int(r.v9))
}

// unitsText is empty for elements without units.
func (r *elementRow) unitsText() string {
	if r.Units == 0 {
		return ""
	}
	return r.Units.String()
}

func (l *elementList) table(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tIPFIX\tNETFLOW V9\tTYPE\tUNITS\tDESCRIPTION")
	for _, r := range l.rows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", r.Name, r.number(), r.v9Text(), r.Type, r.unitsText(), r.Description)
	}
	return t.Flush()
}

func (l *elementList) csv(w io.Writer) error {
	c := csv.NewWriter(w)
	c.Write([]string{"name", "type", "semantics", "units", "enterprise", "number", "netflow9", "description"})
	for _, r := range l.rows {
		c.Write([]string{r.Name, r.Type.String(), r.Semantics.String(), r.Units.String(), strconv.Itoa(int(r.ipfix.PEN)), strconv.Itoa(int(r.ipfix.ID)), r.v9Text(), r.Description})
	}
	c.Flush()
	return c.Error()
}

// jsonElement is an element as --format json has it.
type jsonElement struct {
	Name        string `json:"name"`
	Type        string `json:"type"`
	Semantics   string `json:"semantics"`
	Units       string `json:"units"`
	Enterprise  uint32 `json:"enterprise"`
	Number      uint16 `json:"number"`
	NetFlow9    uint16 `json:"netflow9,omitempty"`
	Description string `json:"description"`
}

func (l *elementList) json(w io.Writer) error {
	var list []jsonElement
	for _, r := range l.rows {
		list = append(list, jsonElement{r.Name, r.Type.String(), r.Semantics.String(), r.Units.String(), r.ipfix.PEN, r.ipfix.ID, r.v9, r.Description})
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(list)
}

// The form of IANA's ipfix.xml, with CERT's enterpriseId, which libfixbuf reads.
type xmlRegistry struct {
	XMLName xml.Name    `xml:"registry"`
	NS      string      `xml:"xmlns,attr"`
	Cert    string      `xml:"xmlns:cert,attr"`
	ID      string      `xml:"id,attr"`
	Title   string      `xml:"title"`
	Inner   xmlElements `xml:"registry"`
}

type xmlElements struct {
	ID      string      `xml:"id,attr"`
	Title   string      `xml:"title"`
	Records []xmlRecord `xml:"record"`
}

type xmlRecord struct {
	Name        string `xml:"name"`
	Type        string `xml:"dataType"`
	Semantics   string `xml:"dataTypeSemantics,omitempty"`
	Enterprise  uint32 `xml:"cert:enterpriseId,omitempty"`
	ID          uint16 `xml:"elementId"`
	Units       string `xml:"units,omitempty"`
	Status      string `xml:"status"`
	Description string `xml:"description>paragraph"`
}

func (l *elementList) xml(w io.Writer) error {
	x := xmlRegistry{NS: "http://www.iana.org/assignments", Cert: "http://www.cert.org/ipfix", ID: "sockflow", Title: "Information Elements of sockflow",
		Inner: xmlElements{ID: "sockflow-information-elements", Title: "Enterprise elements of flow and options records"}}
	for _, r := range l.rows {
		if r.ipfix.PEN == templates.PENIANA || r.ipfix.PEN == templates.PENReverse {
			continue // libfixbuf has its own
		}
		x.Inner.Records = append(x.Inner.Records, xmlRecord{r.Name, r.Type.String(), r.Semantics.String(), r.ipfix.PEN, r.ipfix.ID, r.unitsText(), "current", r.Description})
	}
	return writeXML(w, x)
}

func writeXML(w io.Writer, v any) error {
	b, err := xml.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s%s\n", xml.Header, b)
	return err
}
