module github.com/sockflow/sockflow

go 1.26
