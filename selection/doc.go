// Package selection decides which Flow Records are exported and how much of them: it is the Intermediate Process
// between the Metering and the Exporting Process (RFC 6183). A Filter selects flows by their properties (RFC 7014,
// section 5), an Anonymizer replaces addresses (RFC 6235), an Aggregator makes one record of many (RFC 7015).
package selection
