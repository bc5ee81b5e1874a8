import { print } from "../cli/output.ts";
import type { Suite, SuiteCommand } from "../cli/suite.ts";
import { query } from "./query.ts";
import { read } from "./read.ts";
import { scan } from "./scan.ts";

/** The commands of the original, in its order. */
const commands: readonly SuiteCommand[] = [query, read, scan];

/** `vhd-util`. */
export const vhdUtil: Suite = {
  name: "vhd-util",
  summary: "Makes, describes and changes VHD images that are not in use.",
  manual: {
    details: [
      "Command lines, output and exit statuses are those of blktap's vhd-util, which storage managers call; sizes of " +
        "-s and -S are MiB there, and --debug is taken behind each command.",
      "An image that a running tapdisk has open for writing is not changed.",
    ],
    examples: [
      {
        text: "Make a disk of 20 GiB and a snapshot of it",
        command: "vhd-util create -n base.vhd -s 20480 && vhd-util snapshot -n child.vhd -p base.vhd",
      },
      { text: "See what a folder has", command: "vhd-util scan -p -m '/srv/*.vhd'" },
    ],
    exitStatus: [
      ["0", "success"],
      ["22", "the command line is wrong, or the image can't be used"],
      ["other", "the errno value of what failed"],
    ],
    seeAlso: ["vhd-check", "vhd-coalesce", "td-util", "tapdisk"],
  },
  commands,
  usage: `usage: vhd-util COMMAND [OPTIONS]\nCOMMAND := { ${commands.map((command) => command.name).join(" | ")} }`,
  usageTo: print,
  noCommandStatus: 0,
  badCommandStatus: 0,
};
