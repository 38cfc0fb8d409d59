/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The contract between the programs and event.go: every record that leaves the kernel. The kind comes first, padding is
 * explicit, host byte order but for addresses. Change both sides together; TestLayout compares them.
 */
#ifndef SOCKFLOW_EVENTS_H
#define SOCKFLOW_EVENTS_H

enum event_kind {
	KIND_SOCKET = 1,   /* struct socket_record: a TCP connection closed */
	KIND_DATAGRAM = 2, /* struct datagram_event: a datagram socket has its owner */
	KIND_RELEASE = 3,  /* struct datagram_event: a datagram socket was closed, by whom; no namespace, no control group */
	KIND_EXEC = 4,     /* struct process_event */
	KIND_FORK = 5,
	KIND_EXIT = 6,
	KIND_MOVE = 7,  /* to another control group */
	KIND_MPTCP = 8, /* nothing but the kind: MPTCP is in use */
	KIND_BOUND = 9, /* struct datagram_event: a datagram socket was bound, by whom */
};

enum {
	SOCK_BORN = 1,         /* the programs saw the socket's birth */
	SOCK_TOUCHED = 2,      /* the owner used the socket itself, did not just inherit it from the listener */
	SOCK_FIN_RECEIVED = 4,
	SOCK_KERNEL = 8,       /* the socket belongs to the kernel itself */
	SOCK_SHARED = 16,      /* other processes than the owner have used it too */
	SOCK_FINAL = 32,       /* of an end: the counters include the last segment, a reset say */
	SOCK_ENDED = 64,       /* in the kernel only: the end was reported, and the socket may live on */
	SOCK_RESET = 64,       /* in records only, of an end: the socket aborted, and sent a reset */
	SOCK_MEASURED = 128,   /* in the kernel only: the time of establishment was looked for */
};

enum {
	ROLE_UNKNOWN = 0,
	ROLE_INITIATOR = 1,
	ROLE_RESPONDER = 2,
};

/* A socket's tuple, owner and counters: the event at its end, and the iterator's record of a live one. */
struct socket_record {
	__u32 kind;
	__u32 netns;
	__u64 cookie;
	__u64 time;       /* CLOCK_MONOTONIC, ns; the reader of an iterator knows it itself */
	__u64 start;      /* birth, CLOCK_MONOTONIC, ns; 0 unknown */
	__u64 task_start; /* owner's start, CLOCK_BOOTTIME, ns */
	__u64 cgroup;
	__u64 bytes_sent; /* less what something below the socket refused */
	__u64 bytes_retrans;
	__u64 bytes_received;
	__u64 pacing_rate;
	__u8 saddr[16];
	__u8 daddr[16];
	char ca_name[16];
	__u32 tgid;
	__u32 uid;
	__u32 gid;
	__u32 segs_out;
	__u32 segs_in;
	__u32 total_retrans;
	__u32 srtt_us;    /* times 8, as the kernel keeps it */
	__u32 rttvar_us;  /* times 4 */
	__u32 min_rtt_us;
	__u32 lost;
	__u32 unacked;
	__u32 cwnd;
	__u32 mss;
	__u32 rate_delivered;
	__u32 rate_interval_us;
	__u32 connect_us;
	__u32 seq;        /* own initial sequence number + 1 */
	__u32 peer_seq;   /* the peer's */
	__u16 sport;      /* host byte order */
	__u16 dport;
	__u16 header_len;
	__u16 error;
	__u8 proto;
	__u8 state;
	__u8 old_state;
	__u8 role;
	__u8 flags;
	__u8 v4;
	__u8 syn_retrans; /* retransmissions of the SYN, as far as they are known */
	__u8 cookie_out;  /* octets of the Fast Open option in the SYN sent */
	__u8 cookie_in;   /* and in the SYN received */
	__u8 pad[3];
	__u32 exec;       /* of the owner: how often it had called execve, and its ancestors */
};

struct datagram_event {
	__u32 kind;
	__u32 netns;
	__u64 cookie;
	__u64 time;
	__u64 task_start;
	__u64 cgroup;
	__u32 tgid;
	__u32 uid;
	__u32 gid;
	__u8 flags;
	__u8 pad[3];
	__u32 exec;
	__u32 pad2;
};

/* Followed by path_len and then cgroup_len octets: names from the leaf to the root, each ended by a NUL. */
struct process_event {
	__u32 kind;
	__u32 tgid;
	__u64 time;
	__u64 start;
	__u64 parent_start;
	__u64 cgroup;
	__u32 parent_tgid;
	__u32 uid;
	__u32 gid;
	__u16 path_len;
	__u16 cgroup_len;
	__u32 exec;
	__u32 parent_exec;
	char comm[16];
};

/* Key and value of the maps of datagram flows. */
struct datagram_key {
	__u64 cookie;
	__u8 local[16];
	__u8 remote[16];
	__u16 local_port;
	__u16 remote_port;
	__u8 proto;
	__u8 pad[3];
};

struct datagram_value {
	__u64 first;
	__u64 last;
	__u64 packets[2]; /* out, in */
	__u64 octets[2];
	__u64 payload[2];
	__u32 netns; /* 0 unknown */
	__u8 role;
	__u8 kernel;     /* the socket belongs to the kernel itself */
	__u8 translated; /* by this host's own address translation: the other end sees what follows */
	__u8 pad;
	__u8 far_local[16];
	__u8 far_remote[16];
	__u16 far_local_port;
	__u16 far_remote_port;
	__u32 pad2;
};

/* Why something was lost: indexes of the map losses. */
enum loss {
	LOSS_RING_SOCKET = 0,
	LOSS_RING_PROCESS = 1,
	LOSS_DATAGRAM_MAP = 2,
	LOSS_STORAGE = 3,
	LOSS_ABANDONED = 4, /* connects for which there was no way, or whose counters were cleared before their end was seen */
	LOSS_REFUSED = 5,   /* datagrams that were counted, then refused by another program, and whose count could not be taken back */
	LOSS_SUBFLOW = 6,   /* MPTCP subflows whose counters were cleared before their end was seen */
	SHARED_SOCKETS = 7, /* no loss: sockets that a second process used */
	LOSS_MAX = 8,
};

#endif
