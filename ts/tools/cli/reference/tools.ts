import { tapdiskCommand } from "../../../tapdisk/command.ts";
import { cbtUtil } from "../../cbt-util/suite.ts";
import { tdUtil } from "../../td-util/suite.ts";
import { vhdCheckCommand } from "../../vhd-check/command.ts";
import { outputJsonSchema } from "../../vhd-check/schema.ts";
import { coalesceCommand } from "../../vhd-coalesce/command.ts";
import { vhdUtil } from "../../vhd-util/suite.ts";
import { suiteReference } from "../suite.ts";
import { fromCommander, type Reference } from "./model.ts";

/** All commands that have a manual page and completions. */
export function references(): Reference[] {
  return [
    ...[tapdiskCommand(), vhdCheckCommand(), coalesceCommand()].map(fromCommander),
    ...[vhdUtil, tdUtil, cbtUtil].map(suiteReference),
  ];
}

/** The JSON Schemas of what commands print, by the names of their files. */
export function schemas(): Readonly<Record<string, unknown>> {
  return { "vhd-check.schema.json": outputJsonSchema() };
}
