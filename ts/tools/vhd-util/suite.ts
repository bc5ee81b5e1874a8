import { print } from "../cli/output.ts";
import type { Suite, SuiteCommand } from "../cli/suite.ts";
import { check } from "./check.ts";
import { coalesce } from "./coalesce.ts";
import { convert } from "./convert.ts";
import { copy } from "./copy.ts";
import { create } from "./create.ts";
import { diff } from "./diff.ts";
import { fill } from "./fill.ts";
import { key } from "./key.ts";
import { map } from "./map.ts";
import { modify } from "./modify.ts";
import { query } from "./query.ts";
import { read } from "./read.ts";
import { repair } from "./repair.ts";
import { resize } from "./resize.ts";
import { revert } from "./revert.ts";
import { scan } from "./scan.ts";
import { set } from "./set.ts";
import { snapshot } from "./snapshot.ts";
import { tree } from "./tree.ts";

/** The commands of the original, in its order. */
const originals: readonly SuiteCommand[] = [
  create,
  snapshot,
  query,
  read,
  set,
  repair,
  resize,
  fill,
  coalesce,
  modify,
  scan,
  check,
  revert,
  key,
  copy,
];
/** Those that the original doesn't have. */
const additions: readonly SuiteCommand[] = [tree, map, diff, convert];

function namesOf(commands: readonly SuiteCommand[]): string {
  return commands.map((command) => command.name).join(" | ");
}

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
  commands: [...originals, ...additions],
  usage: `usage: vhd-util COMMAND [OPTIONS]\nCOMMAND := { ${namesOf(originals)} }\nMORE := { ${namesOf(additions)} }`,
  usageTo: print,
  noCommandStatus: 0,
  badCommandStatus: 0,
};
