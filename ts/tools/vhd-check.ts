import { isMainThread } from "node:worker_threads";
import { runTool } from "./cli/program.ts";
import { checkStatuses, vhdCheckCommand } from "./vhd-check/command.ts";
import { work } from "./vhd-check/worker.ts";

// The program's worker threads run the same file.
if (isMainThread) void runTool(vhdCheckCommand(), checkStatuses);
else work();
