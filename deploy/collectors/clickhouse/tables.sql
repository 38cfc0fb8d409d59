-- Flows from Kafka, as goflow2 writes them (JSON, names of "sockflow elements --format goflow2"), into a table by day.
CREATE DATABASE IF NOT EXISTS flows;

CREATE TABLE IF NOT EXISTS flows.queue
(
    time_flow_start_ns UInt64,
    time_flow_end_ns UInt64,
    src_addr String,
    dst_addr String,
    src_port UInt16,
    dst_port UInt16,
    proto String,
    bytes UInt64,
    packets UInt64,
    transport_octet_delta_count UInt64,
    source_process_id UInt32,
    source_process_path String,
    source_user_name String,
    source_container_name String,
    source_pod_name String,
    source_pod_namespace String,
    destination_process_id UInt32,
    destination_process_path String,
    destination_container_name String,
    destination_pod_name String,
    destination_pod_namespace String,
    destination_service_name String,
    tcp_smoothed_round_trip_time_microseconds UInt32,
    retransmitted_packet_delta_count UInt64
)
ENGINE = Kafka
SETTINGS kafka_broker_list = 'kafka:9092', kafka_topic_list = 'flows', kafka_group_name = 'clickhouse', kafka_format = 'JSONEachRow',
    input_format_skip_unknown_fields = 1;

CREATE TABLE IF NOT EXISTS flows.flows AS flows.queue
ENGINE = MergeTree
PARTITION BY toDate(fromUnixTimestamp64Nano(toInt64(time_flow_end_ns)))
ORDER BY (source_pod_namespace, source_pod_name, time_flow_end_ns)
TTL toDateTime(intDiv(time_flow_end_ns, 1000000000)) + INTERVAL 30 DAY;

CREATE MATERIALIZED VIEW IF NOT EXISTS flows.copy TO flows.flows AS SELECT * FROM flows.queue;

-- Who sends most: SELECT source_pod_namespace, source_pod_name, source_process_path, sum(bytes) FROM flows.flows GROUP BY ALL ORDER BY 4 DESC LIMIT 20
