/**
 * The `tapdisk` command. This folder holds the control plane (command line, sockets, handshakes; ordinary asynchronous
 * code on the main thread) and the data plane (worker, disk, vbd; one synchronous loop a disk, in a worker thread). What
 * a VHD looks like is the engine's business, and touching files the port's: neither may be here.
 */

import "./ahead.ts";

import { runTool } from "../tools/cli/program.ts";
import { tapdiskCommand } from "./command.ts";

void runTool(tapdiskCommand());
