package main

// machineCalls are those that every command makes on this machine beyond allowedCalls.
var machineCalls []uint32
