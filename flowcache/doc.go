// Package flowcache is the Metering Process of sockflow (RFC 5470, section 5.3): the vocabulary in which sources
// speak (Observation), the Flow Key with its network namespace, the Cache that turns
// observations into Flow Records, and the Record that leaves it.
//
// It imports nothing of this project and nothing beyond the standard library, so that every other package can
// share its words. Times are int64 nanoseconds since the Unix epoch, by a clock that is not stepped (Now); addresses are 16 octets, IPv4 in its
// IPv4-mapped form (RFC 4291, section 2.5.5.2); ports are in host byte order.
package flowcache
