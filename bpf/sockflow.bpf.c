// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
//go:build ignore

/*
 * The socket source of sockflow. Tracepoints, cgroup hooks and one iterator; kretprobes only where a kernel
 * has no better hook. Nothing runs per TCP packet.
 *
 * The kernel skips a tracing program (tp_btf, fentry) that already runs on this CPU, and counts that as recursion_misses. Where a socket
 * call changes a connection's state softirqs are enabled, so that a packet may be handled in the middle of such a program: what it changes
 * would be missed. So a connection is seen where that cannot happen, or hardly: at its birth by a cgroup program, which has no such
 * guard, and at its end by tcp_destroy_sock, which nearly always runs with softirqs disabled.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>
#include "events.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define AF_INET 2
#define AF_INET6 10
#define SOCK_RAW 3
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_DCCP 33
#define IPPROTO_ICMPV6 58
#define IPPROTO_SCTP 132
#define IPPROTO_UDPLITE 136
#define IPPROTO_MPTCP 262
#define PF_KTHREAD 0x00200000
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86DD
#define SOCK_DONE 1
#define SEND_SHUTDOWN 2

#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_SYN_RECV 3
#define TCP_FIN_WAIT1 4
#define TCP_FIN_WAIT2 5
#define TCP_TIME_WAIT 6
#define TCP_CLOSE 7
#define TCP_CLOSE_WAIT 8
#define TCP_LAST_ACK 9
#define TCP_LISTEN 10
#define TCP_CLOSING 11

/* What is known of a socket. */
struct sock_state {
	__u64 start;
	__u64 task_start;
	__u32 tgid;
	__u32 uid;
	__u32 gid;
	__u32 exec;
	__u32 connect_us;
	__u32 pass; /* the last one in which the owner held the socket */
	__u8 role;
	__u8 flags;
	__u8 syn_retrans;
	__u8 closed_in; /* the TCP state in which close() found it, 0 if it was not closed */
	__be16 port; /* that connect() was called with: tcp_disconnect() clears it */
	__u8 pad[2];
};

/* Key: the socket. Deleted by the kernel with it. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct sock_state);
} sockets SEC(".maps");

/* Octets of messages that a process sent and received through a connection which may be in a sockmap: what BPF redirects from one socket to another
 * passes no counter of TCP. Key: the socket. Deleted by the kernel with it. */
struct messages {
	__u64 octets[2]; /* sent, received */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct messages);
} redirects SEC(".maps");

/* The same for connections that began while the programs watch, until they close. A socket's storage is two allocations, and is freed
 * after a grace period of RCU; a slot here costs nothing to speak of. A socket has one slot, by its cookie; if another has that it
 * has storage like the others. */
struct slot {
	__u64 cookie; /* 0 free */
	struct sock_state state;
};

#define SLOTS 131072

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, struct slot);
} slots SEC(".maps");

/* Listening sockets' owners: of connections that no process ever uses. The address is the wildcard (all zero) where it is in either family. */
struct listener {
	__u32 netns;
	__u32 port;
	__u8 addr[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct listener);
	__type(value, struct sock_state);
} listeners SEC(".maps");

/* Users of sockets that cannot be kept in socket storage, by the address of struct sock: of an MPTCP socket, whose
 * subflows are the connections; and of accepted sockets that a kretprobe sees: it cannot access socket storage. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct sock_state);
} users SEC(".maps");

/* Life-cycle events, in the order they happened. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 << 20);
} events SEC(".maps");

/* Datagram flows since the last drain. User space swaps the inner map: when its update returns no program uses the old
 * one any more (the kernel waits for a grace period), so what it drains is exact. */
struct datagram_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct datagram_key);
	__type(value, struct datagram_value);
};

struct datagram_map datagrams_a SEC(".maps");
struct datagram_map datagrams_b SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct datagram_map);
} datagrams SEC(".maps") = {
	.values = { &datagrams_a },
};

/* The datagram that a CPU counted last on its way out, until its send call ends; the cookie is 0 then. */
struct counted {
	struct datagram_key key;
	__u32 packets;
	__u32 octets;
	__u32 payload;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counted);
} last_sent SEC(".maps");

/* What user space says to the programs. */
struct control {
	__u64 began; /* when the programs began to watch, CLOCK_MONOTONIC, ns */
	__u32 pass;  /* over all sockets, under way or done; 0 before the first, which user space makes twice: 2 when every socket has been seen */
	__u32 mptcp; /* the programs have seen an MPTCP socket, and said so */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct control);
} controls SEC(".maps");

/* Losses by cause. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, LOSS_MAX);
	__type(key, __u32);
	__type(value, __u64);
} losses SEC(".maps");

#define PATH_OCTETS 4096
#define NAME_OCTETS 256

/* Neither is ever that long; the verifier loses the bound in a branch, and believes a mask. */
#define BOUND(len) asm volatile("%0 &= 8191" : "+r"(len))

struct process_buffer {
	struct process_event event;
	char data[4 * PATH_OCTETS + NAME_OCTETS];
};

/* A process event under construction; it is larger than a BPF stack. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct process_buffer);
} process_buffers SEC(".maps");

static __always_inline void lost(__u32 cause)
{
	__u64 *n = bpf_map_lookup_elem(&losses, &cause);

	if (n)
		*n += 1;
}

/* Sockets that are counted datagram by datagram: all but TCP, and MPTCP, whose subflows are TCP. */
static __always_inline bool is_datagram(__u32 proto)
{
	return proto != IPPROTO_TCP && proto != IPPROTO_MPTCP;
}

static __always_inline struct control *control(void)
{
	__u32 index = 0;

	return bpf_map_lookup_elem(&controls, &index);
}

static __always_inline __u32 pass_number(void)
{
	struct control *c = control();

	return c ? c->pass : 0;
}

/* MPTCP is in use: user space attaches subflow_state. */
static __always_inline void mptcp_seen(void)
{
	struct control *c = control();
	__u32 event[2] = { KIND_MPTCP };

	if (c && !c->mptcp && !bpf_ringbuf_output(&events, event, sizeof(event), 0))
		c->mptcp = 1;
}

static __always_inline struct slot *slot_of(__u64 cookie)
{
	__u32 index = cookie & (SLOTS - 1);

	return bpf_map_lookup_elem(&slots, &index);
}

/* Makes it if there is none. Of two that make it at once, a pass and a hook say, the second is refused, and finds it. */
static __always_inline struct sock_state *storage(struct sock *sk)
{
	return bpf_sk_storage_get(&sockets, sk, 0, BPF_SK_STORAGE_GET_F_CREATE) ?: bpf_sk_storage_get(&sockets, sk, 0, 0);
}

static __always_inline struct sock_state *find(struct sock *sk)
{
	__u64 cookie = sk->__sk_common.skc_cookie.counter; /* has one if it has a slot */
	struct slot *slot = slot_of(cookie);

	if (cookie && slot && slot->cookie == cookie)
		return &slot->state;
	return bpf_sk_storage_get(&sockets, sk, 0, 0);
}

/* For a connection that begins. A socket that has storage, as one older than the programs, keeps to it. */
static __always_inline struct sock_state *begin(struct sock *sk, __u64 cookie)
{
	struct sock_state *st = bpf_sk_storage_get(&sockets, sk, 0, 0);
	struct slot *slot = slot_of(cookie);

	if (!st && slot && (!__sync_val_compare_and_swap(&slot->cookie, 0, cookie) || slot->cookie == cookie))
		st = &slot->state;
	if (!st)
		st = storage(sk);
	if (!st) {
		lost(LOSS_STORAGE);
		return NULL;
	}
	__builtin_memset(st, 0, sizeof(*st));
	st->start = bpf_ktime_get_ns();
	st->uid = -1;
	st->gid = -1;
	st->flags = SOCK_BORN;
	return st;
}

/* When a connection was established (CLOCK_MONOTONIC, ns), 0 if that is not known any more: tcp_init_transfer() starts the measurement of the
 * receive space then, and the first data that a process reads begins the next one. */
static __always_inline __u64 established_at(struct tcp_sock *tp)
{
	return tp->rcvq_space.time && tp->rcvq_space.seq == tp->rcv_nxt - (__u32)tp->bytes_received ? tp->rcvq_space.time * 1000 : 0;
}

/* Of MPTCP: the kernel makes it on behalf of a process. */
static __always_inline bool is_subflow(struct sock *sk)
{
	struct tcp_sock *tp = (void *)sk;

	return sk->sk_protocol == IPPROTO_TCP && bpf_core_field_exists(tp->is_mptcp) && BPF_CORE_READ_BITFIELD_PROBED(tp, is_mptcp);
}

static __always_inline void own(struct sock_state *st, struct sock *sk, struct task_struct *task)
{
	if (task->flags & PF_KTHREAD || (BPF_CORE_READ_BITFIELD(sk, sk_kern_sock) && !is_subflow(sk))) {
		st->flags |= SOCK_KERNEL;
		st->tgid = 0;
		st->exec = 0;
		st->task_start = 0;
		st->uid = -1;
		st->gid = -1;
		return;
	}
	st->tgid = task->tgid;
	st->task_start = task->group_leader->start_boottime;
	st->exec = task->self_exec_id;
	st->uid = task->cred->euid.val;
	st->gid = task->cred->egid.val;
	st->pass = pass_number();
}

/* The owner of one socket is that of another. */
static __always_inline void own_as(struct sock_state *st, const struct sock_state *user)
{
	st->tgid = user->tgid;
	st->task_start = user->task_start;
	st->exec = user->exec;
	st->uid = user->uid;
	st->gid = user->gid;
	st->flags |= user->flags & SOCK_KERNEL;
}

static __always_inline __u64 cgroup_of(struct sock *sk)
{
	struct cgroup *cg = sk->sk_cgrp_data.cgroup;

	return cg ? cg->kn->id : 0;
}

static __always_inline void mapped(__u8 *to, __be32 addr)
{
	*(__u64 *)to = 0;
	*(__u32 *)(to + 8) = bpf_htonl(0xffff);
	*(__u32 *)(to + 12) = addr;
}

/* The address that a socket is bound to, as in records, but every wildcard is all zero. */
static __always_inline void put_bound(__u8 *to, struct sock *sk)
{
	if (sk->__sk_common.skc_family != AF_INET)
		bpf_probe_read_kernel(to, 16, &sk->__sk_common.skc_v6_rcv_saddr);
	else if (sk->__sk_common.skc_rcv_saddr)
		mapped(to, sk->__sk_common.skc_rcv_saddr);
}

static __always_inline void put_listener(struct sock *sk, struct task_struct *task)
{
	struct listener key = { sk->__sk_common.skc_net.net->ns.inum, sk->__sk_common.skc_num };
	struct sock_state st = {};

	put_bound(key.addr, sk);
	own(&st, sk, task);
	bpf_map_update_elem(&listeners, &key, &st, BPF_ANY);
}

static __always_inline void put_addresses(struct socket_record *r, struct sock *sk)
{
	if (sk->__sk_common.skc_family == AF_INET) {
		mapped(r->saddr, sk->__sk_common.skc_rcv_saddr);
		mapped(r->daddr, sk->__sk_common.skc_daddr);
		r->v4 = 1;
		return;
	}
	bpf_probe_read_kernel(r->saddr, 16, &sk->__sk_common.skc_v6_rcv_saddr);
	bpf_probe_read_kernel(r->daddr, 16, &sk->__sk_common.skc_v6_daddr);
	/* A dual-stack socket that talks IPv4 has mapped addresses: its packets have IPv4 headers. */
	r->v4 = *(__u64 *)r->daddr == 0 && *(__u32 *)(r->daddr + 8) == bpf_htonl(0xffff);
}

static __always_inline void put_state(struct socket_record *r, struct sock_state *st)
{
	r->start = st->start;
	r->task_start = st->task_start;
	r->tgid = st->tgid;
	r->uid = st->uid;
	r->gid = st->gid;
	r->exec = st->exec;
	r->connect_us = st->connect_us;
	r->role = st->role;
	r->syn_retrans = st->syn_retrans;
	r->flags |= st->flags & ~(SOCK_ENDED | SOCK_MEASURED);
}

/* Octets of payload that left, each once: by sequence numbers, less SYN and FIN. bytes_sent less bytes_retrans would be too many where
 * something below refused a segment (a packet filter, a full queue): the kernel has counted it then, and sends it again as new. */
static __always_inline __u64 payload_sent(struct tcp_sock *tp, __u8 role, __u32 fin)
{
	__u64 most = tp->bytes_sent - tp->bytes_retrans;
	__u64 sent = tp->bytes_acked + (tp->snd_nxt - tp->snd_una) - (role == ROLE_INITIATOR) - fin;

	return role == ROLE_UNKNOWN || sent > most ? most : sent; /* was there a SYN? With TCP_REPAIR there was none */
}

/* Whether a FIN was sent, in a state that the socket is in, or was in before CLOSE. */
static __always_inline __u32 fin_sent(struct tcp_sock *tp, __u8 state)
{
	return (state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2 || state == TCP_LAST_ACK || state == TCP_CLOSING || state == TCP_TIME_WAIT) && tp->snd_nxt == tp->write_seq;
}

/* The state that a connection which is in CLOSE now was in before, as far as its counters say. closed_in is the state in which close() found it. */
static __always_inline __u8 last_state(struct tcp_sock *tp, __u8 role, __u8 closed_in)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	bool received = sk->__sk_common.skc_flags & (1UL << SOCK_DONE); /* a FIN: tcp_fin() sets it */
	__u64 passed = tp->bytes_acked + (tp->snd_nxt - tp->snd_una), most = tp->bytes_sent - tp->bytes_retrans + (role == ROLE_INITIATOR);
	bool sent;

	if (role == ROLE_INITIATOR && !tp->rcv_nxt)
		return TCP_SYN_SENT;
	/* Sequence numbers beyond payload and SYN are the FIN's. Fewer than these: the kernel counted a segment that was refused below. */
	if (!(sk->sk_shutdown & SEND_SHUTDOWN) || tp->snd_nxt != tp->write_seq)
		sent = false;
	else if (passed < most)
		sent = !sk->sk_err;
	else
		sent = passed > most;
	if (!sent)
		return received ? TCP_CLOSE_WAIT : TCP_ESTABLISHED;
	if (!received)
		return tp->snd_una == tp->write_seq ? TCP_FIN_WAIT2 : TCP_FIN_WAIT1;
	if (closed_in == TCP_CLOSE_WAIT || closed_in == TCP_LAST_ACK)
		return TCP_LAST_ACK;
	return tp->snd_una == tp->write_seq ? TCP_FIN_WAIT2 : TCP_CLOSING;
}

#define COOKIE_REQUEST 4 /* octets of an empty Fast Open option with its padding (RFC 7413, section 4.1.1) */
#define COOKIE 12        /* of one with the 8 octets that Linux gives out */
#define TFO_COOKIE_UNAVAILABLE 1

/* Octets of the Fast Open option in the SYN: of one sent with the connection's first SYN, never again; of one received if its cookie was good. The
 * child of a request for a cookie does not know of it. */
static __always_inline void put_fast_open(struct socket_record *r, struct tcp_sock *tp, __u8 role)
{
	if (role == ROLE_INITIATOR) {
		if (BPF_CORE_READ_BITFIELD(tp, syn_fastopen))
			r->cookie_out = bpf_core_field_exists(tp->fastopen_client_fail) && BPF_CORE_READ_BITFIELD(tp, fastopen_client_fail) == TFO_COOKIE_UNAVAILABLE ? COOKIE_REQUEST : COOKIE;
	} else if (bpf_core_field_exists(tp->syn_fastopen_child) ? BPF_CORE_READ_BITFIELD(tp, syn_fastopen_child) : BPF_CORE_READ_BITFIELD(tp, syn_data_acked)) {
		r->cookie_in = COOKIE;
	}
}

/* state is the socket's, before CLOSE if it has ended. */
static __always_inline void put_tcp(struct socket_record *r, struct tcp_sock *tp, __u8 state, __u8 role)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	const struct tcp_congestion_ops *ca = tp->inet_conn.icsk_ca_ops;
	unsigned long flags = sk->__sk_common.skc_flags;
	__u32 fin = fin_sent(tp, state);
	__u64 sent = payload_sent(tp, role, fin);
	struct messages *m;

	m = bpf_sk_storage_get(&redirects, sk, 0, 0);
	r->bytes_sent = sent + tp->bytes_retrans;
	r->bytes_retrans = tp->bytes_retrans;
	r->bytes_received = tp->bytes_received;
	if (m && m->octets[0] > sent)
		r->bytes_sent = m->octets[0] + tp->bytes_retrans;
	if (m && m->octets[1] > r->bytes_received)
		r->bytes_received = m->octets[1] + !!(flags & (1UL << SOCK_DONE)); /* the FIN counts as an octet */
	r->pacing_rate = sk->sk_pacing_rate;
	r->segs_out = tp->segs_out;
	r->segs_in = tp->segs_in;
	r->total_retrans = tp->total_retrans;
	r->srtt_us = tp->srtt_us;
	r->rttvar_us = tp->rttvar_us;
	r->min_rtt_us = tp->rtt_min.s[0].v;
	r->lost = tp->lost;
	r->unacked = tp->packets_out;
	r->cwnd = tp->snd_cwnd;
	r->mss = tp->mss_cache;
	r->rate_delivered = tp->rate_delivered;
	r->rate_interval_us = tp->rate_interval_us;
	r->header_len = tp->tcp_header_len;
	put_fast_open(r, tp, role);
	/* Where both ends began to count, whatever they see of each other: their sequence numbers now, less what went by. */
	if (tp->rcv_nxt) {
		r->seq = tp->snd_nxt - (__u32)sent - fin;
		r->peer_seq = tp->rcv_nxt - (__u32)tp->bytes_received;
	}
	/* At the end of a connection the port is no longer in skc_num (inet_put_port), but still here. */
	r->sport = bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport);
	r->error = sk->sk_err;
	if (flags & (1UL << SOCK_DONE))
		r->flags |= SOCK_FIN_RECEIVED; /* tcp_fin() sets it */
	if (ca) { /* two loads cost less than a helper */
		*(__u64 *)r->ca_name = *(const __u64 *)ca->name;
		*(__u64 *)(r->ca_name + 8) = *(const __u64 *)(ca->name + 8);
	}
}

static __always_inline void put_common(struct socket_record *r, struct sock *sk)
{
	r->cookie = sk->__sk_common.skc_cookie.counter ?: bpf_get_socket_cookie(sk);
	r->cgroup = cgroup_of(sk);
	r->netns = sk->__sk_common.skc_net.net->ns.inum;
	r->sport = sk->__sk_common.skc_num;
	r->dport = bpf_ntohs(sk->__sk_common.skc_dport);
	r->proto = sk->sk_protocol;
	r->uid = -1;
	r->gid = -1;
}

/* Give a socket that no process used through its storage the user that is known otherwise. */
static __always_inline void own_otherwise(struct sock_state *st, struct sock *sk, struct tcp_sock *tp)
{
	struct listener at = { sk->__sk_common.skc_net.net->ns.inum, bpf_ntohs(tp->inet_conn.icsk_inet.inet_sport) };
	__u64 key = (__u64)sk;
	struct sock_state *user;

	if (bpf_core_field_exists(tp->is_mptcp) && BPF_CORE_READ_BITFIELD(tp, is_mptcp)) {
		struct mptcp_subflow_context *subflow = tp->inet_conn.icsk_ulp_data;

		key = (__u64)BPF_CORE_READ(subflow, conn);
	}
	user = bpf_map_lookup_elem(&users, &key);
	if (user) {
		own_as(st, user);
		st->flags |= SOCK_TOUCHED;
		if (key == (__u64)sk)
			bpf_map_delete_elem(&users, &key);
		return;
	}
	if (st->tgid)
		return;
	put_bound(at.addr, sk);
	user = bpf_map_lookup_elem(&listeners, &at);
	if (!user) {
		__builtin_memset(at.addr, 0, sizeof(at.addr));
		user = bpf_map_lookup_elem(&listeners, &at);
	}
	if (user)
		own_as(st, user);
}

/* Who began a connection whose birth no hook saw: the subflows of MPTCP are connected within the kernel. */
static __always_inline __u8 role_of(struct tcp_sock *tp)
{
	struct mptcp_subflow_context *subflow = tp->inet_conn.icsk_ulp_data;

	if (!bpf_core_field_exists(tp->is_mptcp) || !BPF_CORE_READ_BITFIELD(tp, is_mptcp))
		return ROLE_RESPONDER;
	if (BPF_CORE_READ_BITFIELD_PROBED(subflow, request_mptcp) || BPF_CORE_READ_BITFIELD_PROBED(subflow, request_join))
		return ROLE_INITIATOR;
	return ROLE_RESPONDER;
}

/* Where every socket that was there before the programs has been seen, one that is not known is younger, and was accepted. */
static __always_inline bool all_known(void)
{
	return pass_number() >= 2;
}

/* The state of a connection whose birth no hook saw, at its first use. It is older than the programs if it waited in a listener's queue. */
static __always_inline void accepted(struct sock_state *st, struct tcp_sock *tp)
{
	struct control *c = control();
	__u64 at = established_at(tp);

	if (!c || !c->began || (at ? at < c->began : c->pass < 2)) {
		st->flags &= ~SOCK_BORN;
		st->role = ROLE_UNKNOWN;
		st->start = 0;
		return;
	}
	st->flags |= SOCK_BORN;
	/* Until the first pass is over it may be a client that called connect() just before there was a program to see it. */
	st->role = c->pass < 2 ? ROLE_UNKNOWN : role_of(tp);
	st->start = at ?: bpf_ktime_get_ns();
}

/* Reserve the record of a connection that ended in CLOSE; old_state is the state before. NULL without room, which is counted as a loss. */
static __always_inline struct socket_record *end_record(struct sock *sk, __u8 old_state)
{
	struct socket_record *r = bpf_ringbuf_reserve(&events, sizeof(*r), 0);

	if (!r) {
		lost(LOSS_RING_SOCKET);
		return NULL;
	}
	__builtin_memset(r, 0, sizeof(*r));
	r->kind = KIND_SOCKET;
	r->state = TCP_CLOSE;
	r->old_state = old_state;
	r->time = bpf_ktime_get_ns();
	put_common(r, sk);
	put_addresses(r, sk);
	return r;
}

/* Report the end of a connection, in CLOSE: see end_record(). */
static __always_inline void report_end(struct sock *sk, struct tcp_sock *tp, struct sock_state *st, __u8 old_state, __u8 flags)
{
	struct socket_record *r = end_record(sk, old_state);

	if (!r)
		return;
	put_tcp(r, tp, old_state, st->role);
	if (!(st->flags & SOCK_TOUCHED))
		own_otherwise(st, sk, tp);
	put_state(r, st);
	r->flags |= flags;
	bpf_ringbuf_submit(r, 0);
}

/* A child of a listener that was never established, and no process's: the second of one request, made on another CPU (inet_ehash_nolisten). It has
 * the cookie of the first, and so finds what is known of that. */
static __always_inline bool never_established(struct tcp_sock *tp, struct sock_state *st)
{
	return !tp->rcvq_space.time && (st ? st->role : role_of(tp)) != ROLE_INITIATOR;
}

#define ECONNRESET 104
#define SYN_TIMEOUT 1000000000ULL /* TCP_TIMEOUT_INIT, ns */

/* How many SYNs a connect() has sent by the latest of them. The timer that sends the next one has a fixed course, and is late by less than that. */
static __always_inline __u32 syns_sent(struct sock *sk, struct tcp_sock *tp, __u64 start)
{
	__u64 last = tp->tcp_mstamp * 1000, timeout = SYN_TIMEOUT, next = start + SYN_TIMEOUT;
	struct net *net = sk->__sk_common.skc_net.net;
	__u32 n, linear = 0;

	if (bpf_core_field_exists(net->ipv4.sysctl_tcp_syn_linear_timeouts))
		linear = net->ipv4.sysctl_tcp_syn_linear_timeouts;
	for (n = 1; n < 16 && next <= last; n++) {
		if (n > linear)
			timeout *= 2;
		next += timeout;
	}
	return n;
}

/* A connection that was given up before there was an answer (SO_LINGER 0, shutdown(), connect(AF_UNSPEC)): tcp_disconnect() has cleared what it
 * counted, and its addresses but for the route's flow. An IPv6 socket does not keep that: its own address is not known. */
static __noinline void report_given_up(struct sock *sk, struct tcp_sock *tp, struct sock_state *st)
{
	struct inet_sock *inet = &tp->inet_conn.icsk_inet;
	struct socket_record *r = end_record(sk, TCP_SYN_SENT);

	if (!r)
		return;
	if (r->v4) {
		mapped(r->saddr, inet->cork.fl.u.ip4.saddr);
		mapped(r->daddr, inet->cork.fl.u.ip4.daddr);
	}
	put_state(r, st);
	r->sport = bpf_ntohs(inet->inet_sport);
	r->dport = bpf_ntohs(st->port);
	r->header_len = tp->tcp_header_len;
	r->segs_out = syns_sent(sk, tp, st->start);
	r->total_retrans = r->segs_out - 1;
	r->syn_retrans = r->segs_out - 1;
	r->flags |= SOCK_FINAL;
	bpf_ringbuf_submit(r, 0);
}

/* The end of a connection in CLOSE, once: it may be seen at a reset, at an error, in a pass and when the socket is destroyed. */
static __always_inline void end(struct sock *sk, bool aborted)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct sock_state *st, s = {};
	__u8 state;

	if (!tp || !tp->inet_conn.icsk_inet.inet_sport)
		return; /* no port could be had: nothing was ever sent */
	st = find(sk);
	if (never_established(tp, st) || (st && st->flags & SOCK_ENDED))
		return;
	if (st && st->role == ROLE_INITIATOR && !tp->rcv_nxt && !tp->segs_out && sk->__sk_common.skc_dport)
		return; /* nothing was ever sent: there was no way, or Fast Open waited for data */
	if (!sk->__sk_common.skc_dport) {
		/* Disconnected, or never connected. Of the latter there is no state. */
		if (st && st->flags & SOCK_BORN && st->role) {
			/* A SYN was sent, and not answered. */
			if (st->role == ROLE_INITIATOR && sk->sk_err == ECONNRESET && st->port && tp->tcp_mstamp * 1000 > st->start && tp->rcvq_space.time * 1000 < st->start)
				report_given_up(sk, tp, st);
			else
				lost(is_subflow(sk) ? LOSS_SUBFLOW : LOSS_ABANDONED);
			st->flags |= SOCK_ENDED;
		} else if (!st && tp->rcvq_space.time && is_subflow(sk)) { /* established once; not a listener's */
			lost(LOSS_SUBFLOW);
			st = begin(sk, bpf_get_socket_cookie(sk));
			if (st)
				st->flags |= SOCK_ENDED;
		}
		return;
	}
	if (st) {
		s = *st;
	} else {
		s.uid = -1;
		s.gid = -1;
		if (!tp->rcvq_space.time) { /* MPTCP's, without an answer */
			s.role = ROLE_INITIATOR;
			s.flags = SOCK_BORN;
			s.start = bpf_ktime_get_ns();
		}
	}
	if (!s.start && (!st || s.flags & SOCK_BORN)) {
		/* No process ever used it, and perhaps none accepted it. */
		s.start = established_at(tp);
		if (!s.start && !st) {
			s.role = ROLE_UNKNOWN; /* older than the programs */
		} else {
			accepted(&s, tp);
		}
	}
	state = last_state(tp, s.role, s.closed_in);
	if (aborted && state == TCP_FIN_WAIT2)
		state = TCP_FIN_WAIT1; /* no FIN is waited for any more */
	report_end(sk, tp, &s, state, aborted ? SOCK_FINAL | SOCK_RESET : SOCK_FINAL); /* or count it as lost, once */
	if (!st)
		st = begin(sk, bpf_get_socket_cookie(sk));
	if (st)
		st->flags |= SOCK_ENDED;
}

/* connect(): the caller's context, before the kernel looks for a way. Also for one that failed before. */
static __always_inline int connecting(struct bpf_sock_addr *ctx)
{
	struct task_struct *task;
	struct sock_state *st;
	struct tcp_sock *tp;
	struct bpf_sock *bsk;

	if (ctx->protocol != IPPROTO_TCP)
		return 1;
	bsk = ctx->sk;
	if (!bsk)
		return 1;
	tp = bpf_skc_to_tcp_sock(bsk);
	if (!tp)
		return 1;
	st = begin(&tp->inet_conn.icsk_inet.sk, bpf_get_socket_cookie(ctx));
	if (!st)
		return 1;
	st->role = ROLE_INITIATOR;
	st->port = ctx->user_port;
	task = bpf_get_current_task_btf();
	if (task->flags & PF_KTHREAD && is_subflow(&tp->inet_conn.icsk_inet.sk))
		return 1; /* the kernel adds a path to a connection: see own_otherwise() */
	own(st, &tp->inet_conn.icsk_inet.sk, task);
	st->flags |= SOCK_TOUCHED;
	return 1;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	return connecting(ctx);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	return connecting(ctx);
}

/* A TCP socket is gone: the end of its connection, if that was not seen before. Softirq context, often another process's. Two programs, in this
 * order: a packet that is handled while one of them runs (softirqs are enabled where the last segments waited for the process that closes)
 * finds the other free. The first reports the end, the second does so if the first was skipped, and frees the slot. */
SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(destroyed, struct sock *sk)
{
	end(sk, false);
	return 0;
}

SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(destroyed2, struct sock *sk)
{
	__u64 cookie = sk->__sk_common.skc_cookie.counter;
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	struct slot *slot;

	if (!tp)
		return 0;
	end(sk, false);
	slot = slot_of(cookie);
	if (cookie && slot && slot->cookie == cookie && !never_established(tp, &slot->state))
		slot->cookie = 0;
	return 0;
}

/* An abort: tcp_disconnect() clears the counters and the address next (SO_LINGER 0, connect(AF_UNSPEC), a listener that closes). */
SEC("tp_btf/tcp_send_reset")
int BPF_PROG(send_reset, struct sock *sk)
{
	if (sk && sk->__sk_common.skc_state == TCP_CLOSE) /* none: the answer to a segment of no connection */
		end(sk, true);
	return 0;
}

/* A connection failed or was reset, and its process holds the socket still: it may be long until that is destroyed, and it may connect again. */
SEC("tp_btf/inet_sk_error_report")
int BPF_PROG(error_report, struct sock *sk)
{
	if (sk->sk_protocol == IPPROTO_TCP && sk->__sk_common.skc_state == TCP_CLOSE)
		end(sk, false);
	return 0;
}

/* The life of TCP sockets where they cannot be seen at connect(). Softirq context, often another process's: current is the owner only where
 * the comment says so. */
static __always_inline int state_changed(struct sock *sk, int old_state, int new_state)
{
	struct sock_state *st = NULL, s = {};
	struct task_struct *task;
	struct tcp_sock *tp;

	switch (new_state) {
	case TCP_SYN_SENT: /* connect(): the caller's context */
		st = begin(sk, bpf_get_socket_cookie(sk));
		if (st) {
			st->role = ROLE_INITIATOR;
			task = bpf_get_current_task_btf();
			if (task->flags & PF_KTHREAD && is_subflow(sk))
				return 0; /* the kernel adds a path to a connection: see own_otherwise() */
			own(st, sk, task);
			st->flags |= SOCK_TOUCHED;
		}
		return 0;
	case TCP_LISTEN: /* listen(): the caller's context */
		put_listener(sk, bpf_get_current_task_btf());
		return 0;
	case TCP_ESTABLISHED:
		if (old_state == TCP_SYN_RECV) {
			/* A child of a listener. Not when it becomes SYN_RECV: then its cookie is not yet its own (inet_csk_clone_lock).
			 * With Fast Open its process may have used it already. */
			st = find(sk) ?: begin(sk, bpf_get_socket_cookie(sk));
			if (st) {
				st->flags |= SOCK_BORN;
				st->start = st->start ?: bpf_ktime_get_ns();
				st->role = st->role ?: ROLE_RESPONDER; /* initiator in a simultaneous open */
			}
			return 0;
		}
		if (old_state != TCP_SYN_SENT)
			return 0;
		st = find(sk);
		if (st && st->start)
			st->connect_us = (bpf_ktime_get_ns() - st->start) / 1000;
		return 0;
	case TCP_CLOSE:
		break;
	default:
		return 0;
	}
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp || !tp->inet_conn.icsk_inet.inet_sport || !sk->__sk_common.skc_dport)
		return 0;
	st = find(sk);
	if (!st || st->flags & SOCK_ENDED)
		return 0; /* destroyed() knows as much of one without state */
	s = *st;
	if (old_state == TCP_SYN_RECV && s.role == ROLE_UNKNOWN)
		s.role = ROLE_RESPONDER;
	report_end(sk, tp, &s, old_state, 0);
	st->flags |= SOCK_ENDED;
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(set_state, struct sock *sk, int old_state, int new_state)
{
	return sk->sk_protocol == IPPROTO_TCP ? state_changed(sk, old_state, new_state) : 0;
}

/* The same for the subflows of MPTCP alone: the kernel connects them by itself, and disconnects the first one, which clears its counters, before
 * it is destroyed. Attached while there are any. */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(subflow_state, struct sock *sk, int old_state, int new_state)
{
	return is_subflow(sk) ? state_changed(sk, old_state, new_state) : 0;
}

/* Reserve an event of a datagram socket and its owner. NULL without room, which is counted as a loss. */
static __always_inline struct datagram_event *datagram_event(__u32 kind, __u64 cookie, const struct sock_state *owner)
{
	struct datagram_event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);

	if (!e) {
		lost(LOSS_RING_SOCKET);
		return NULL;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->kind = kind;
	e->time = bpf_ktime_get_ns();
	e->cookie = cookie;
	e->tgid = owner->tgid;
	e->task_start = owner->task_start;
	e->exec = owner->exec;
	e->uid = owner->uid;
	e->gid = owner->gid;
	return e;
}

/* Report the owner of a datagram socket. */
static __always_inline void datagram(struct sock *sk, struct sock_state *st)
{
	struct datagram_event *e = datagram_event(KIND_DATAGRAM, bpf_get_socket_cookie(sk), st);

	if (!e)
		return;
	e->cgroup = cgroup_of(sk);
	e->netns = sk->__sk_common.skc_net.net->ns.inum;
	e->flags = st->flags & ~(SOCK_ENDED | SOCK_MEASURED);
	bpf_ringbuf_submit(e, 0);
}

/* What is known of a connection that a process uses: of one that was accepted, from now on. NULL if there is no connection. */
static __always_inline struct sock_state *used(struct sock *sk)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	__u8 state = sk->__sk_common.skc_state;
	struct sock_state *st = find(sk);
	__u64 at;

	if (!tp || state == TCP_CLOSE || state == TCP_LISTEN || state == TCP_SYN_SENT)
		return NULL;
	if (st && st->flags & SOCK_MEASURED)
		return st;
	if (!st) {
		st = begin(sk, bpf_get_socket_cookie(sk));
		if (!st)
			return NULL;
		accepted(st, tp);
	} else if (st->role == ROLE_INITIATOR && !st->connect_us) {
		at = established_at(tp);
		if (at > st->start)
			st->connect_us = (at - st->start) / 1000;
	}
	st->syn_retrans = tp->total_retrans < 255 && tp->bytes_retrans == 0 ? tp->total_retrans : 0;
	st->flags |= SOCK_MEASURED;
	return st;
}

/* A datagram was sent, or not: result. One that another control-group program refused, or what comes after it, was counted all the same;
 * that is taken back. The hook that counts runs within the call that this one ends. */
static __always_inline void sent(struct sock *sk, int result)
{
	struct datagram_value *v;
	struct counted *last;
	__u32 index = 0;
	void *map;

	last = bpf_map_lookup_elem(&last_sent, &index);
	if (!last || last->key.cookie != (__u64)sk->__sk_common.skc_cookie.counter)
		return;
	if (result < 0) {
		map = bpf_map_lookup_elem(&datagrams, &index);
		v = map ? bpf_map_lookup_elem(map, &last->key) : NULL;
		if (v) {
			__sync_fetch_and_sub(&v->packets[0], last->packets);
			__sync_fetch_and_sub(&v->octets[0], last->octets);
			__sync_fetch_and_sub(&v->payload[0], last->payload);
		} else {
			lost(LOSS_REFUSED);
		}
	}
	last->key.cookie = 0;
}

/* The first process that sends or receives through a socket owns its flow; whether there are others is counted. In the
 * caller's context. result is what the call returned: one that failed, for there was nothing to read say, is no use. */
static __always_inline int touch(struct sock *sk, int result, int in)
{
	__u16 family = sk->__sk_common.skc_family;
	struct task_struct *task;
	struct sock_state *st;
	struct messages *m;

	if (result < 0 || (family != AF_INET && family != AF_INET6))
		return 0;
	if (sk->sk_protocol == IPPROTO_TCP) {
		if (sk->sk_user_data) { /* a sockmap's, or the kernel's own */
			m = bpf_sk_storage_get(&redirects, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
			if (m)
				__sync_fetch_and_add(&m->octets[in], result);
		}
		st = used(sk);
		if (!st)
			return 0;
	} else {
		st = bpf_sk_storage_get(&sockets, sk, 0, 0); /* only connections have slots */
	}
	task = bpf_get_current_task_btf();
	if (st && (st->flags & SOCK_TOUCHED)) {
		if (st->tgid != task->tgid && !(st->flags & (SOCK_SHARED | SOCK_KERNEL))) {
			st->flags |= SOCK_SHARED;
			lost(SHARED_SOCKETS);
		}
		return 0;
	}
	if (!st) {
		st = storage(sk);
		if (!st) {
			lost(LOSS_STORAGE);
			return 0;
		}
	}
	own(st, sk, task);
	st->flags |= SOCK_TOUCHED;
	if (is_datagram(sk->sk_protocol)) {
		datagram(sk, st);
	} else if (sk->sk_protocol == IPPROTO_MPTCP) {
		__u64 key = (__u64)sk;

		bpf_map_update_elem(&users, &key, st, BPF_ANY);
		mptcp_seen();
	}
	return 0;
}

SEC("tp_btf/sock_send_length")
int BPF_PROG(send_length, struct sock *sk, int result)
{
	if (is_datagram(sk->sk_protocol))
		sent(sk, result);
	return touch(sk, result, 0);
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(recv_length, struct sock *sk, int result)
{
	return touch(sk, result, 1);
}

/* Before Linux 6.3 these tracepoints are not there. */
SEC("fexit/inet_sendmsg")
int BPF_PROG(send4, struct socket *sock, void *msg, unsigned long size, int result)
{
	if (is_datagram(sock->sk->sk_protocol))
		sent(sock->sk, result);
	return touch(sock->sk, result, 0);
}

SEC("fexit/inet6_sendmsg")
int BPF_PROG(send6, struct socket *sock, void *msg, unsigned long size, int result)
{
	if (is_datagram(sock->sk->sk_protocol))
		sent(sock->sk, result);
	return touch(sock->sk, result, 0);
}

SEC("fexit/inet_recvmsg")
int BPF_PROG(receive4, struct socket *sock, void *msg, unsigned long size, int flags, int result)
{
	return touch(sock->sk, result, 1);
}

SEC("fexit/inet6_recvmsg")
int BPF_PROG(receive6, struct socket *sock, void *msg, unsigned long size, int flags, int result)
{
	return touch(sock->sk, result, 1);
}

/* Where neither is to be had: who accepted a connection. */
static __always_inline int accepted_by(__u64 sk)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct sock_state st = {};

	if (!sk)
		return 0;
	st.tgid = BPF_CORE_READ(task, tgid);
	st.exec = BPF_CORE_READ(task, self_exec_id);
	st.task_start = BPF_CORE_READ(task, group_leader, start_boottime);
	st.uid = BPF_CORE_READ(task, cred, euid.val);
	st.gid = BPF_CORE_READ(task, cred, egid.val);
	bpf_map_update_elem(&users, &sk, &st, BPF_ANY);
	return 0;
}

/* What a function returns is in another register on each machine; one object serves both, and the loader chooses. */
SEC("kretprobe/inet_csk_accept")
int accept_return(struct pt_regs *ctx)
{
	return accepted_by(ctx->ax);
}

SEC("kretprobe/inet_csk_accept")
int accept_return_arm64(struct user_pt_regs *ctx)
{
	return accepted_by(ctx->regs[0]);
}

/* The process that calls, for programs which have no typed access to it. */
static __always_inline void own_caller(struct sock_state *st)
{
	struct task_struct *task = bpf_get_current_task_btf();

	if (task->flags & PF_KTHREAD)
		return;
	st->tgid = task->tgid;
	st->task_start = task->group_leader->start_boottime;
	st->exec = task->self_exec_id;
	st->uid = task->cred->euid.val;
	st->gid = task->cred->egid.val;
	st->pass = pass_number();
}

/* A TCP socket is bound, perhaps to listen. In the caller's context. */
static __always_inline int bound(struct bpf_sock *sk, struct listener *key)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct sock_state st = {};

	st.uid = -1;
	st.gid = -1;
	own_caller(&st);
	if (st.tgid) {
		key->netns = task->nsproxy->net_ns->ns.inum;
		key->port = sk->src_port;
		bpf_map_update_elem(&listeners, key, &st, BPF_ANY);
	}
	return 1;
}

/* A datagram socket is bound: its owner until a process uses it, which may be long after datagrams have come, or a pass sees it. */
static __always_inline int bound_datagram(struct bpf_sock *sk)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct sock_state by = {};
	struct datagram_event *e;

	own_caller(&by);
	if (!by.tgid)
		return 1;
	e = datagram_event(KIND_BOUND, bpf_get_socket_cookie(sk), &by);
	if (!e)
		return 1;
	e->cgroup = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
	e->netns = task->nsproxy->net_ns->ns.inum;
	bpf_ringbuf_submit(e, 0);
	return 1;
}

SEC("cgroup/post_bind4")
int bind4(struct bpf_sock *sk)
{
	struct listener key = {};

	if (is_datagram(sk->protocol))
		return bound_datagram(sk);
	if (sk->protocol != IPPROTO_TCP)
		return 1;
	if (sk->src_ip4)
		mapped(key.addr, sk->src_ip4);
	return bound(sk, &key);
}

SEC("cgroup/post_bind6")
int bind6(struct bpf_sock *sk)
{
	struct listener key = {};

	if (is_datagram(sk->protocol))
		return bound_datagram(sk);
	if (sk->protocol != IPPROTO_TCP)
		return 1;
	*(__u32 *)key.addr = sk->src_ip6[0];
	*(__u32 *)(key.addr + 4) = sk->src_ip6[1];
	*(__u32 *)(key.addr + 8) = sk->src_ip6[2];
	*(__u32 *)(key.addr + 12) = sk->src_ip6[3];
	return bound(sk, &key);
}

/* A TCP socket is closed. A connection that no process has sent or received through (or only by splice(2), which no hook sees) belongs to the
 * process that closes it, rather than to the one that listened. */
static __always_inline void closing(struct bpf_sock *sk)
{
	__u64 cookie = bpf_get_socket_cookie(sk);
	struct slot *slot = slot_of(cookie);
	struct sock_state *st;

	if (sk->state == TCP_LISTEN)
		return;
	if (slot && slot->cookie == cookie)
		st = &slot->state;
	else
		st = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (!st) {
		if (sk->state == TCP_CLOSE || !all_known())
			return;
		if (!slot || __sync_val_compare_and_swap(&slot->cookie, 0, cookie))
			return;
		st = &slot->state;
		__builtin_memset(st, 0, sizeof(*st));
		st->uid = -1;
		st->gid = -1;
		st->flags = SOCK_BORN;
		st->role = ROLE_RESPONDER;
	}
	st->closed_in = sk->state;
	if (!(st->flags & (SOCK_TOUCHED | SOCK_KERNEL)))
		own_caller(st);
}

/* A socket is closed, in the context of the process that closes it. A datagram socket's owner if no process has used it: it was only
 * spoken to. */
SEC("cgroup/sock_release")
int release(struct bpf_sock *sk)
{
	struct sock_state by = {};
	struct datagram_event *e;

	if (sk->protocol == IPPROTO_TCP) {
		closing(sk);
		return 1;
	}
	if (!is_datagram(sk->protocol))
		return 1;
	own_caller(&by);
	e = datagram_event(KIND_RELEASE, bpf_get_socket_cookie(sk), &by);
	if (!e)
		return 1;
	bpf_ringbuf_submit(e, 0);
	return 1;
}

struct ipv4_header {
	__u8 version_ihl;
	__u8 tos;
	__be16 len;
	__u16 id;
	__be16 fragment;
	__u8 ttl;
	__u8 protocol;
	__u16 check;
	__be32 saddr;
	__be32 daddr;
};

struct ipv6_header {
	__be32 flow;
	__be16 payload_len;
	__u8 next;
	__u8 hop_limit;
	__u8 saddr[16];
	__u8 daddr[16];
};

extern void *bpf_cast_to_kern_ctx(void *obj) __ksym __weak; /* Linux 6.2 */

#define RTAX_MTU 2
#define LEAST_MTU 68 /* RFC 791 */

/* The hooks see a datagram before it is fragmented, and after it was put together again. Returns the largest IP packet that it
 * travels in, 0 if that is not known: on its way out the MTU of its route, or what path MTU discovery found, or else that of the interface. */
static __always_inline __u32 packet_size(struct __sk_buff *skb, int in, bool v4)
{
	struct dst_entry *dst;
	struct sk_buff *kskb;
	__u32 mtu, other = 0;

	if (!bpf_cast_to_kern_ctx)
		return 0;
	kskb = bpf_cast_to_kern_ctx(skb);
	if (in)
		return *(__u16 *)(kskb->cb + (v4 ? bpf_core_field_offset(struct inet_skb_parm, frag_max_size) : bpf_core_field_offset(struct inet6_skb_parm, frag_max_size)));
	mtu = kskb->dev ? kskb->dev->mtu : 0;
	dst = (void *)(kskb->_skb_refdst & ~1UL);
	if (!dst)
		return mtu;
	bpf_probe_read_kernel(&other, sizeof(other), (void *)((BPF_CORE_READ(dst, _metrics) & ~3UL) + (RTAX_MTU - 1) * sizeof(__u32)));
	if (other >= LEAST_MTU && other < mtu)
		mtu = other;
	if (v4) {
		other = BPF_CORE_READ_BITFIELD_PROBED((struct rtable *)dst, rt_pmtu);
		if (other >= LEAST_MTU && other < mtu)
			mtu = other;
	}
	return mtu;
}

#define NFCT_INFO 7UL   /* the lowest bits of sk_buff._nfct: enum ip_conntrack_info */
#define IP_CT_IS_REPLY 3
#define IP_CT_UNTRACKED 7
#define IPS_NAT 0x30UL /* IPS_SRC_NAT, IPS_DST_NAT */

struct tuple_dst { /* the beginning of nf_conntrack_tuple.dst */
	union nf_inet_addr u3;
	union nf_conntrack_man_proto u;
};

static __always_inline void put_tuple_addr(__u8 *to, const union nf_inet_addr *addr, bool v4)
{
	if (v4)
		mapped(to, addr->all[0]);
	else
		__builtin_memcpy(to, addr->all, 16);
}

/* Whether the answer comes from elsewhere than the question went to. IPVS changes that alone, and no status (ip_vs_update_conntrack). */
static __always_inline bool altered(const struct nf_conn *ct, bool ports)
{
	struct tuple_dst asked;
	struct nf_conntrack_man answer;

	BPF_CORE_READ_INTO(&asked, ct, tuplehash[0].tuple.dst);
	BPF_CORE_READ_INTO(&answer, ct, tuplehash[1].tuple.src);
	for (int i = 0; i < 4; i++)
		if (asked.u3.all[i] != answer.u3.all[i])
			return true;
	return ports && asked.u.all != answer.u.all;
}

/* What the two ends of a datagram see, where this host translates the addresses (NAT): connection tracking keeps the tuple of each direction
 * as it comes from its sender. Programs on the way out run after the translation, so that the socket's view is in the tuple; on the way in
 * the header has it. Returns false if nothing is translated. */
static __always_inline bool translated(struct __sk_buff *skb, int in, bool v4, bool ports, struct datagram_key *k, struct datagram_value *v)
{
	struct nf_conntrack_tuple mine, other;
	struct nf_conn *ct;
	unsigned long nfct;
	bool reply;

	if (!bpf_cast_to_kern_ctx || !bpf_core_type_exists(struct nf_conn))
		return false;
	nfct = ((struct sk_buff *)bpf_cast_to_kern_ctx(skb))->_nfct;
	ct = (void *)(nfct & ~NFCT_INFO);
	if (!ct || (nfct & NFCT_INFO) == IP_CT_UNTRACKED)
		return false;
	if (!(BPF_CORE_READ(ct, status) & IPS_NAT) && !altered(ct, ports))
		return false;
	reply = (nfct & NFCT_INFO) >= IP_CT_IS_REPLY;
	if (reply) {
		BPF_CORE_READ_INTO(&mine.src.u3, ct, tuplehash[1].tuple.src.u3);
		BPF_CORE_READ_INTO(&mine.src.u.all, ct, tuplehash[1].tuple.src.u.all);
		BPF_CORE_READ_INTO(&mine.dst.u3, ct, tuplehash[1].tuple.dst.u3);
		BPF_CORE_READ_INTO(&mine.dst.u.all, ct, tuplehash[1].tuple.dst.u.all);
		BPF_CORE_READ_INTO(&other.src.u3, ct, tuplehash[0].tuple.src.u3);
		BPF_CORE_READ_INTO(&other.src.u.all, ct, tuplehash[0].tuple.src.u.all);
		BPF_CORE_READ_INTO(&other.dst.u3, ct, tuplehash[0].tuple.dst.u3);
		BPF_CORE_READ_INTO(&other.dst.u.all, ct, tuplehash[0].tuple.dst.u.all);
	} else {
		BPF_CORE_READ_INTO(&mine.src.u3, ct, tuplehash[0].tuple.src.u3);
		BPF_CORE_READ_INTO(&mine.src.u.all, ct, tuplehash[0].tuple.src.u.all);
		BPF_CORE_READ_INTO(&mine.dst.u3, ct, tuplehash[0].tuple.dst.u3);
		BPF_CORE_READ_INTO(&mine.dst.u.all, ct, tuplehash[0].tuple.dst.u.all);
		BPF_CORE_READ_INTO(&other.src.u3, ct, tuplehash[1].tuple.src.u3);
		BPF_CORE_READ_INTO(&other.src.u.all, ct, tuplehash[1].tuple.src.u.all);
		BPF_CORE_READ_INTO(&other.dst.u3, ct, tuplehash[1].tuple.dst.u3);
		BPF_CORE_READ_INTO(&other.dst.u.all, ct, tuplehash[1].tuple.dst.u.all);
	}
	/* mine is this packet as its sender sent it, other the answer as it comes from the receiver. */
	if (in) {
		put_tuple_addr(v->far_local, &mine.dst.u3, v4);
		put_tuple_addr(v->far_remote, &mine.src.u3, v4);
		v->far_local_port = ports ? bpf_ntohs(mine.dst.u.all) : k->local_port;
		v->far_remote_port = ports ? bpf_ntohs(mine.src.u.all) : k->remote_port;
	} else {
		put_tuple_addr(k->local, &mine.src.u3, v4);
		put_tuple_addr(k->remote, &mine.dst.u3, v4);
		if (ports) {
			k->local_port = bpf_ntohs(mine.src.u.all);
			k->remote_port = bpf_ntohs(mine.dst.u.all);
		}
		put_tuple_addr(v->far_local, &other.dst.u3, v4);
		put_tuple_addr(v->far_remote, &other.src.u3, v4);
		v->far_local_port = ports ? bpf_ntohs(other.dst.u.all) : k->local_port;
		v->far_remote_port = ports ? bpf_ntohs(other.src.u.all) : k->remote_port;
	}
	v->translated = 1;
	v->role = !in == !reply ? ROLE_INITIATOR : ROLE_RESPONDER;
	return true;
}

/* Reads the socket's network namespace, and whether the kernel owns the socket. Before Linux 6.2 it reads nothing. */
static __always_inline void put_socket(struct datagram_value *v, struct __sk_buff *skb)
{
	struct sk_buff *kskb;
	struct sock *sk;

	if (!bpf_cast_to_kern_ctx)
		return;
	kskb = bpf_cast_to_kern_ctx(skb);
	sk = BPF_CORE_READ(kskb, sk);
	v->netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	v->kernel = BPF_CORE_READ_BITFIELD_PROBED(sk, sk_kern_sock);
}

/* What stands in for the ports of an ICMP flow, as exporters of packets do it: type * 256 + code at the end that is spoken to, and an
 * answer belongs to its question. */
static __always_inline void put_icmp(struct datagram_key *k, __u8 type, __u8 code, int in)
{
	__u8 question = type;

	if (k->proto == IPPROTO_ICMP && type == 0)
		question = 8;
	else if (k->proto == IPPROTO_ICMPV6 && type == 129)
		question = 128;
	if (in ^ (question != type))
		k->local_port = question << 8 | code;
	else
		k->remote_port = question << 8 | code;
}

/* Whether a packet is TCP, by its header: the question that every packet of the host is asked. */
static __always_inline bool is_tcp(struct __sk_buff *skb)
{
	__u8 *data = (void *)(long)skb->data;

	if ((void *)(data + sizeof(struct ipv4_header)) > (void *)(long)skb->data_end)
		return false;
	return (data[0] >> 4 == 4 ? data[9] : data[6]) == IPPROTO_TCP;
}

#define EXACT_DATAGRAMS 64

/* When a flow's latest datagram passed. To read the clock is most of what a datagram costs: the exact time is for the first of each
 * second, where the answer to a question is; of a long flow the time of the last tick, some milliseconds less, will do. */
static __always_inline __u64 time_of_last(struct datagram_value *v)
{
	if (v->packets[0] + v->packets[1] < EXACT_DATAGRAMS || !bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_ktime_get_coarse_ns))
		return bpf_ktime_get_ns();
	return bpf_ktime_get_coarse_ns(); /* Linux 5.11 */
}

/* Count a datagram. */
static __always_inline int count(struct __sk_buff *skb, int in)
{
	struct datagram_value *v, zero = {};
	struct datagram_key k = {};
	struct bpf_sock *sk = skb->sk;
	__u32 segments, offset, octets, payload, header, transport = 8, index = 0;
	struct counted *last;
	bool v4, ports = false;
	__u64 now;
	void *map;

	if (!sk)
		return 1;
	sk = bpf_sk_fullsock(sk);
	if (!sk || !is_datagram(sk->protocol))
		return 1;

	v4 = skb->protocol == bpf_htons(ETH_P_IP);
	if (v4) {
		struct ipv4_header h;

		if (bpf_skb_load_bytes(skb, 0, &h, sizeof(h)))
			return 1;
		offset = (h.version_ihl & 15) * 4;
		k.proto = h.protocol;
		mapped(k.local, in ? h.daddr : h.saddr);
		mapped(k.remote, in ? h.saddr : h.daddr);
	} else {
		struct ipv6_header h;
		__u8 next;

		if (bpf_skb_load_bytes(skb, 0, &h, sizeof(h)))
			return 1;
		offset = sizeof(h);
		next = h.next;
		/* Extension headers: hop-by-hop 0, routing 43, fragment 44, destination options 60 (RFC 8200, section 4). */
		for (int i = 0; i < 6; i++) {
			__u8 ext[2];

			if (next != 0 && next != 43 && next != 44 && next != 60)
				break;
			if (bpf_skb_load_bytes(skb, offset, ext, sizeof(ext)))
				return 1;
			offset += next == 44 ? 8 : (ext[1] + 1) * 8;
			next = ext[0];
		}
		k.proto = next;
		__builtin_memcpy(k.local, in ? h.daddr : h.saddr, 16);
		__builtin_memcpy(k.remote, in ? h.saddr : h.daddr, 16);
	}
	if (k.proto != sk->protocol && sk->type != SOCK_RAW)
		return 1; /* an ICMP error on behalf of the socket, say */
	switch (k.proto) {
	case IPPROTO_UDP:
	case IPPROTO_UDPLITE:
	case IPPROTO_SCTP:
	case IPPROTO_DCCP: {
		__be16 p[2];

		if (bpf_skb_load_bytes(skb, offset, p, sizeof(p)))
			return 1;
		k.local_port = bpf_ntohs(p[in]);
		k.remote_port = bpf_ntohs(p[!in]);
		ports = true;
		if (k.proto == IPPROTO_SCTP || k.proto == IPPROTO_DCCP)
			transport = 12;
		break;
	}
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6: {
		__u8 type[2];

		if (bpf_skb_load_bytes(skb, offset, type, sizeof(type)))
			return 1;
		put_icmp(&k, type[0], type[1], in);
		break;
	}
	default:
		transport = 0;
	}
	zero.role = in ? ROLE_RESPONDER : ROLE_INITIATOR;
	if (k.proto == IPPROTO_ICMP || k.proto == IPPROTO_ICMPV6)
		zero.role = k.local_port ? ROLE_RESPONDER : ROLE_INITIATOR;
	translated(skb, in, v4, ports, &k, &zero);
	if (sk->type == SOCK_RAW)
		put_socket(&zero, skb);
	/* The kernel answers echoes by a socket of its own for each CPU: they are one. */
	k.cookie = zero.kernel && (k.local_port == 8 << 8 || k.local_port == 128 << 8) ? 0 : bpf_get_socket_cookie(skb);

	octets = skb->len;
	segments = skb->gso_segs;
	if (segments > 1) {
		/* A super-packet of UDP GSO or GRO has one header here and one per segment on the wire. */
		octets += (segments - 1) * (offset + transport);
	} else {
		__u32 size = skb->len > LEAST_MTU ? packet_size(skb, in, v4) : 0;

		segments = 1;
		header = v4 ? offset : offset + 8; /* IPv6: a fragment header each */
		if (size > header + 8 && (in || skb->len > size)) {
			__u32 room = (size - header) & ~7u;

			segments = (skb->len - offset + room - 1) / room;
			if (segments > 1)
				octets += (segments - 1) * header + (header - offset);
			else
				segments = 1;
		}
	}

	map = bpf_map_lookup_elem(&datagrams, &index);
	if (!map)
		return 1;
	v = bpf_map_lookup_elem(map, &k);
	if (!v) {
		zero.first = bpf_ktime_get_ns();
		if (!zero.netns)
			put_socket(&zero, skb);
		bpf_map_update_elem(map, &k, &zero, BPF_NOEXIST);
		v = bpf_map_lookup_elem(map, &k);
		if (!v) {
			lost(LOSS_DATAGRAM_MAP);
			return 1;
		}
	}
	now = time_of_last(v);
	if (v->last < now)
		v->last = now;
	__sync_fetch_and_add(&v->packets[in], segments);
	__sync_fetch_and_add(&v->octets[in], octets);
	payload = skb->len > offset + transport ? skb->len - offset - transport : 0;
	__sync_fetch_and_add(&v->payload[in], payload);
	if (!in && !zero.kernel) {
		last = bpf_map_lookup_elem(&last_sent, &index);
		if (last) {
			last->key = k;
			last->packets = segments;
			last->octets = octets;
			last->payload = payload;
		}
	}
	return 1;
}

/* Not inlined: the registers that counting needs are then saved for datagrams only. */
static __noinline int datagram_out(struct __sk_buff *skb)
{
	return count(skb, 0);
}

static __noinline int datagram_in(struct __sk_buff *skb)
{
	return count(skb, 1);
}

SEC("cgroup_skb/egress")
int count_out(struct __sk_buff *skb)
{
	return is_tcp(skb) ? 1 : datagram_out(skb);
}

SEC("cgroup_skb/ingress")
int count_in(struct __sk_buff *skb)
{
	return is_tcp(skb) ? 1 : datagram_in(skb);
}

/* Waits for one cache line of a socket while it waits for the others. */
#define FETCH(field) \
	do { \
		__auto_type word = field; \
		asm volatile("" ::"r"(word)); \
	} while (0)

/* A pass is as slow as the memory of sockets that nobody used lately: ask for all of a connection's lines at once, before the first
 * is needed. */
static __always_inline void fetch(struct tcp_sock *tp)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;

	FETCH(sk->sk_cgrp_data.cgroup);
	FETCH(sk->__sk_common.skc_cookie.counter);
	FETCH(sk->sk_pacing_rate);
	FETCH(sk->sk_err);
	FETCH(tp->inet_conn.icsk_inet.inet_sport);
	FETCH(tp->inet_conn.icsk_ca_ops);
	FETCH(tp->mss_cache);
	FETCH(tp->lost);
	FETCH(tp->segs_out);
	FETCH(tp->snd_nxt);
	FETCH(tp->bytes_received);
	FETCH(tp->bytes_acked);
	FETCH(tp->total_retrans);
}

extern void *bpf_rdonly_cast(void *obj, __u32 btf_id) __ksym __weak; /* Linux 6.2 */

#define CAST(type, address) ((type *)bpf_rdonly_cast((void *)(address), bpf_core_type_id_kernel(type)))

/* The same for the task's next descriptors, one pointer further the nearer they are: from the table to a file, a socket, a connection. Nothing
 * that is read is used, so that it does not matter whether it is still there. */
static __always_inline void fetch_next(struct task_struct *task, struct file *socket_file, __u32 fd)
{
	struct fdtable *table;
	struct file *file;
	__u64 next[3]; /* from the second next on */

	if (!bpf_rdonly_cast)
		return;
	table = task->files->fdt;
	if (fd + 4 >= table->max_fds || bpf_probe_read_kernel(next, sizeof(next), (void *)((__u64)table->fd + (fd + 2) * sizeof(__u64))))
		return;
	if (next[2]) {
		file = CAST(struct file, next[2]);
		FETCH(file->f_op);
		FETCH(file->private_data);
		if (bpf_core_field_exists(file->f_ref))
			FETCH(file->f_ref.refcnt.counter); /* the iterator holds the file */
	}
	file = CAST(struct file, next[1]);
	if (next[1] && file->f_op == socket_file->f_op)
		FETCH(CAST(struct socket, file->private_data)->sk);
	file = CAST(struct file, next[0]);
	if (next[0] && file->f_op == socket_file->f_op)
		fetch(CAST(struct tcp_sock, CAST(struct socket, file->private_data)->sk));
}

/* A pass sees a process hold a socket that is known: it is the owner's, or that of a child of a listener that was there before us, or the one
 * that is left when the owner let go of it, a whole pass ago. */
static __always_inline void held(struct sock_state *st, struct sock *sk, struct task_struct *task)
{
	__u32 pass = pass_number();

	if (st->tgid == task->tgid)
		st->pass = pass;
	else if (!(st->flags & SOCK_KERNEL) && (!st->tgid || st->pass + 2 <= pass))
		own(st, sk, task);
}

static __always_inline void put_socket_record(struct socket_record *r, struct sock *sk, __u8 state)
{
	__builtin_memset(r, 0, sizeof(*r));
	r->kind = KIND_SOCKET;
	r->state = state;
	put_common(r, sk);
	put_addresses(r, sk);
}

static __always_inline int visit_connection(struct seq_file *seq, struct tcp_sock *tp, struct task_struct *task)
{
	struct sock *sk = &tp->inet_conn.icsk_inet.sk;
	__u8 state = sk->__sk_common.skc_state;
	struct socket_record r;
	struct sock_state *st;

	/* The storage before the slot: most of what a pass costs is memory that is not in the cache. */
	st = bpf_sk_storage_get(&sockets, sk, 0, 0) ?: find(sk);
	if (state == TCP_LISTEN)
		put_listener(sk, task);
	if (st) {
		held(st, sk, task);
	} else {
		bool older = pass_number() < 2;

		if (state == TCP_CLOSE && (!older || !sk->__sk_common.skc_dport))
			return 0; /* not connected: connect() makes its state */
		st = storage(sk);
		if (!st)
			return 0;
		own(st, sk, task);
		if (state == TCP_CLOSE) {
			st->flags |= SOCK_ENDED; /* before there was anyone to report it */
			return 0;
		}
		if (state != TCP_LISTEN)
			accepted(st, tp);
	}
	if (state != TCP_CLOSE) {
		put_socket_record(&r, sk, state);
		put_tcp(&r, tp, state, st->role);
		put_state(&r, st);
		bpf_seq_write(seq, &r, sizeof(r));
		return 0;
	}
	/* It ended and its process holds the socket: shut down in both directions, say. */
	if (st->flags & SOCK_ENDED || !sk->__sk_common.skc_dport || !tp->inet_conn.icsk_inet.inet_sport)
		return 0;
	put_socket_record(&r, sk, state);
	r.old_state = last_state(tp, st->role, 0);
	r.time = tp->tcp_mstamp * 1000;
	put_tcp(&r, tp, r.old_state, st->role);
	put_state(&r, st);
	r.flags |= SOCK_FINAL;
	if (!bpf_seq_write(seq, &r, sizeof(r))) /* else it comes again, when there is room */
		st->flags |= SOCK_ENDED;
	return 0;
}

static __always_inline int visit_datagrams(struct seq_file *seq, struct sock *sk, struct task_struct *task)
{
	struct socket_record r;
	struct sock_state *st;

	st = bpf_sk_storage_get(&sockets, sk, 0, 0);
	if (st) {
		held(st, sk, task);
	} else {
		st = storage(sk);
		if (!st)
			return 0;
		own(st, sk, task);
	}
	put_socket_record(&r, sk, sk->__sk_common.skc_state);
	put_state(&r, st);
	bpf_seq_write(seq, &r, sizeof(r));
	return 0;
}

/* One read() walks the sockets of all processes in all network namespaces, and gives those that existed before the
 * start their owner. */
SEC("iter/task_file")
int walk(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket *socket;
	struct tcp_sock *tp;
	struct sock *sk;
	__u16 family, proto;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk)
		return 0;
	family = sk->__sk_common.skc_family;
	if (family != AF_INET && family != AF_INET6)
		return 0;
	proto = sk->sk_protocol;
	if (proto == IPPROTO_MPTCP) {
		if (sk->__sk_common.skc_state != TCP_LISTEN && sk->__sk_common.skc_state != TCP_CLOSE) /* many a server listens like that, and speaks with TCP clients alone */
			mptcp_seen();
		return 0; /* its subflows are TCP sockets, which no process holds: audits see them */
	}
	if (proto != IPPROTO_TCP) {
		fetch_next(task, file, ctx->fd);
		return visit_datagrams(ctx->meta->seq, sk, task);
	}
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return 0;
	fetch(tp);
	fetch_next(task, file, ctx->fd);
	return visit_connection(ctx->meta->seq, tp, task);
}

/* Names from the leaf to the root of a path, as the process sees it; of one with more names than the loop takes, "..." is the last. Returns
 * the length. */
static __always_inline __u32 put_path(char *to, struct file *file, struct task_struct *task)
{
	struct dentry *root = BPF_CORE_READ(task, fs, root.dentry);
	struct vfsmount *root_mnt = BPF_CORE_READ(task, fs, root.mnt);
	struct dentry *d = BPF_CORE_READ(file, f_path.dentry);
	struct vfsmount *vfs = BPF_CORE_READ(file, f_path.mnt);
	const char more[4] = "...";
	__u32 len = 0;

	for (int i = 0; i < 48; i++) {
		struct dentry *up;
		long n;

		if (d == root && vfs == root_mnt)
			return len;
		if (d == BPF_CORE_READ(vfs, mnt_root)) {
			struct mount *m = (void *)vfs - bpf_core_field_offset(struct mount, mnt);
			struct mount *parent = BPF_CORE_READ(m, mnt_parent);

			if (m == parent)
				return len;
			d = BPF_CORE_READ(m, mnt_mountpoint);
			vfs = (void *)parent + bpf_core_field_offset(struct mount, mnt);
			continue;
		}
		up = BPF_CORE_READ(d, d_parent);
		if (len > PATH_OCTETS - NAME_OCTETS)
			break;
		BOUND(len);
		n = bpf_probe_read_kernel_str(to + len, NAME_OCTETS, BPF_CORE_READ(d, d_name.name));
		if (n > 0)
			len += n & (2 * NAME_OCTETS - 1);
		if (up == d)
			return len; /* a file of no mounted tree: memfd, say */
		d = up;
	}
	BOUND(len);
	bpf_probe_read_kernel(to + len, sizeof(more), more);
	return len + sizeof(more);
}

static __always_inline __u32 put_cgroup(char *to, struct kernfs_node *kn)
{
	__u32 len = 0;

	for (int i = 0; i < 16; i++) {
		struct kernfs_node *up;
		long n;

		if (!kn)
			break;
		if (bpf_core_field_exists(kn->__parent))
			up = BPF_CORE_READ(kn, __parent);
		else
			up = BPF_CORE_READ((struct kernfs_node___parent *)kn, parent);
		if (!up)
			break; /* the root has no name */
		if (len > PATH_OCTETS - NAME_OCTETS)
			break;
		BOUND(len);
		n = bpf_probe_read_kernel_str(to + len, NAME_OCTETS, BPF_CORE_READ(kn, name));
		if (n > 0)
			len += n & (2 * NAME_OCTETS - 1);
		kn = up;
	}
	return len;
}

static __always_inline void put_process(struct process_event *e, struct task_struct *task, __u8 kind)
{
	__builtin_memset(e, 0, sizeof(*e));
	e->kind = kind;
	e->time = bpf_ktime_get_ns();
	e->tgid = task->tgid;
	e->exec = task->self_exec_id;
	e->start = task->group_leader->start_boottime;
}

static __always_inline void put_relatives(struct process_event *e, struct task_struct *task)
{
	struct task_struct *parent = task->real_parent;

	e->parent_tgid = parent->tgid;
	e->parent_start = parent->group_leader->start_boottime;
	e->parent_exec = parent->self_exec_id;
	e->uid = task->cred->euid.val;
	e->gid = task->cred->egid.val;
	e->cgroup = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
	bpf_probe_read_kernel(e->comm, sizeof(e->comm), task->comm);
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(process_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	struct process_buffer *b;
	__u32 zero = 0, path, cgroup;

	b = bpf_map_lookup_elem(&process_buffers, &zero);
	if (!b)
		return 0;
	put_process(&b->event, task, KIND_EXEC);
	put_relatives(&b->event, task);
	path = put_path(b->data, bprm->file, task);
	BOUND(path);
	b->event.path_len = path;
	cgroup = put_cgroup(b->data + path, BPF_CORE_READ(task, cgroups, dfl_cgrp, kn));
	BOUND(cgroup);
	b->event.cgroup_len = cgroup;
	if (bpf_ringbuf_output(&events, b, sizeof(b->event) + path + cgroup, 0))
		lost(LOSS_RING_PROCESS);
	return 0;
}

/* A running process was put into another control group. */
SEC("tp_btf/cgroup_attach_task")
int BPF_PROG(process_move, struct cgroup *to, const char *path, struct task_struct *task, bool threadgroup)
{
	struct process_buffer *b;
	__u32 zero = 0, cgroup;

	if (task->pid != task->tgid && !threadgroup)
		return 0; /* a thread */
	b = bpf_map_lookup_elem(&process_buffers, &zero);
	if (!b)
		return 0;
	put_process(&b->event, task, KIND_MOVE);
	put_relatives(&b->event, task);
	cgroup = put_cgroup(b->data, BPF_CORE_READ(task, cgroups, dfl_cgrp, kn));
	BOUND(cgroup);
	b->event.cgroup_len = cgroup;
	if (bpf_ringbuf_output(&events, b, sizeof(b->event) + cgroup, 0))
		lost(LOSS_RING_PROCESS);
	return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(process_fork, struct task_struct *parent, struct task_struct *child)
{
	struct process_event e;

	if (child->pid != child->tgid)
		return 0; /* a thread */
	put_process(&e, child, KIND_FORK);
	put_relatives(&e, child);
	if (bpf_ringbuf_output(&events, &e, sizeof(e), 0))
		lost(LOSS_RING_PROCESS);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(process_exit, struct task_struct *task)
{
	struct process_event e;

	if (task->signal->live.counter != 0)
		return 0; /* threads remain */
	put_process(&e, task, KIND_EXIT);
	if (bpf_ringbuf_output(&events, &e, sizeof(e), 0))
		lost(LOSS_RING_PROCESS);
	return 0;
}
