import { constants } from "node:os";
import * as z from "zod";
import { UsageError } from "../cli/failure.ts";
import type { Jobs } from "../cli/jobs.ts";
import { print } from "../cli/output.ts";
import { suiteCommand } from "../cli/suite.ts";
import { announcing } from "./failing.ts";
import { help, name, valued } from "./options.ts";

const { EINVAL } = constants.errno;
const MAX_BYTE = 255;

/** Sets a field as `vhd-util set` does. Yields the exit status. */
export async function setField(jobs: Jobs, path: string, field: string, text: string): Promise<number> {
  if (field !== "hidden" && field !== "marker") {
    print(`invalid field ${field}`);
    throw new UsageError("the fields are hidden and marker");
  }
  const value = /^[+-]?\d+$/.test(text) ? Number(text) : Number.NaN;
  if (!(value >= 0 && value <= MAX_BYTE)) {
    print(`invalid value ${text}`);
    throw new UsageError(`values are from 0 to ${MAX_BYTE}`);
  }
  await announcing(
    (errno) => `error opening ${path}: ${errno}`,
    () => jobs.run({ job: "set", path, [field]: value }, z.null()),
  );
  return 0;
}

/** `vhd-util set`. */
export const set = suiteCommand("vhd-util", {
  name: "set",
  summary: "Sets what storage managers note in an image.",
  usage: "options: <-n name> <-f field> <-v value> [-h help]",
  helpStatus: EINVAL,
  options: {
    name,
    field: valued("f", "field", "hidden: no disk of its own any more; marker: any note", ["hidden", "marker"]),
    value: valued("v", "N", "from 0 to 255"),
    h: help,
  },
  manual: { examples: [{ text: "Hide an image", command: "vhd-util set -n base.vhd -f hidden -v 1" }] },
  async run({ options, operands }, jobs) {
    const { name: path, field, value } = options;
    if (path === undefined || field === undefined || value === undefined || operands.length > 0) {
      throw new UsageError("-n, -f and -v are needed");
    }
    return await setField(jobs, path, field, value);
  },
});
