import { runTool } from "./cli/program.ts";
import { coalesceCommand } from "./vhd-coalesce/command.ts";

void runTool(coalesceCommand());
