import { constants } from "node:os";
import { ToolError, UsageError } from "../cli/failure.ts";
import { parseNumber } from "../cli/getopt.ts";
import { print, say } from "../cli/output.ts";
import { writeOut } from "../cli/raw-output.ts";
import { type Suite, suiteCommand } from "../cli/suite.ts";
import { flag, help, name, valued } from "../vhd-util/options.ts";
import { bitmapBytes, type CbtLog, grow, isUuid, MAX_SIZE, merge, NIL, readLog, writeLog } from "./log.ts";

const { EINVAL } = constants.errno;

/** The original says what it can't open, and how the system calls that. */
function open(path: string): CbtLog {
  try {
    return readLog(path);
  } catch (error) {
    if (error instanceof ToolError) throw error;
    say(`Failed to open log file ${path}.`);
    throw error;
  }
}

function sizeOf(text: string): number {
  const size = parseNumber(text, "the size");
  if (size > MAX_SIZE) throw new UsageError(`a size of at most ${MAX_SIZE} bytes is expected`);
  return size;
}

function uuidOf(text: string): string {
  if (!isUuid(text)) throw new UsageError(`'${text}' is no UUID`);
  return text.toLowerCase();
}

const create = suiteCommand("cbt-util", {
  name: "create",
  summary: "Makes a log in which nothing has changed.",
  usage:
    "cbt-util create: Create new CBT metadata log with default values\n\n" +
    "Options:\n\t-n Log file name\n\t-s Num blocks in bitmap\n\t[-h help]",
  helpStatus: EINVAL,
  options: { name: { ...name, description: "the log" }, size: valued("s", "bytes", "size of the disk"), h: help },
  manual: { examples: [{ text: "A log for a disk of 20 GiB", command: "cbt-util create -n disk.log -s 21474836480" }] },
  async run({ options, operands }) {
    const size = options.size === undefined ? 0 : sizeOf(options.size);
    if (options.name === undefined || size === 0 || operands.length > 0) throw new UsageError("-n and -s are needed");
    writeLog(options.name, { parent: NIL, child: NIL, consistent: 0, size, bitmap: Buffer.alloc(bitmapBytes(size)) });
    return 0;
  },
});

const set = suiteCommand("cbt-util", {
  name: "set",
  summary: "Sets fields of a log.",
  usage:
    "cbt-util set: Set field in log file\n\nOptions:\n -n name\tName of log file\n" +
    "[-p parent]\tParent log file UUID\n[-c child]\tChild log file UUID\n[-f 0|1]\tConsistency flag\n" +
    "[-s size]\tSize of the disk in bytes\n[-h]\t\thelp",
  helpStatus: EINVAL,
  options: {
    name: { ...name, description: "the log" },
    parent: valued("p", "UUID", "the log before this one"),
    child: valued("c", "UUID", "the log behind this one"),
    consistent: valued("f", "0|1", "whether the log knows of all changes", ["0", "1"]),
    size: valued("s", "bytes", "size of the disk, which has grown"),
    h: help,
  },
  async run({ options, operands }) {
    const { name: path, parent, child, consistent, size } = options;
    const changes = [parent, child, consistent, size].filter((value) => value !== undefined);
    if (path === undefined || changes.length === 0 || operands.length > 0) {
      throw new UsageError("-n and something to set are needed");
    }
    const log = open(path);
    if (parent !== undefined) log.parent = uuidOf(parent);
    if (child !== undefined) log.child = uuidOf(child);
    if (consistent !== undefined) log.consistent = parseNumber(consistent, "-f");
    if (size !== undefined) grow(log, sizeOf(size));
    writeLog(path, log);
    return 0;
  },
});

const get = suiteCommand("cbt-util", {
  name: "get",
  summary: "Tells one field of a log.",
  usage:
    "cbt-util get: Read field from log file\n\nOptions:\n -n name\tName of log file\n" +
    "[-p]\t\tPrint parent log file UUID\n[-c]\t\tPrint child log file UUID\n[-f]\t\tPrint consistency flag\n" +
    "[-s]\t\tPrint size of disk in bytes\n[-b]\t\tPrint bitmap contents\n[-h]\t\thelp",
  helpStatus: EINVAL,
  options: {
    name: { ...name, description: "the log" },
    parent: flag("p", "UUID of the log before this one"),
    child: flag("c", "UUID of the log behind this one"),
    consistent: flag("f", "whether the log knows of all changes"),
    size: flag("s", "size of the disk in bytes"),
    bitmap: flag("b", "the bitmap, binary"),
    h: help,
  },
  manual: { examples: [{ text: "What has changed", command: "cbt-util get -b -n disk.log | xxd -b" }] },
  async run({ options, operands }) {
    const { name: path, parent, child, consistent, size, bitmap } = options;
    const asked = [parent, child, consistent, size, bitmap].filter((value) => value !== undefined);
    if (path === undefined || asked.length !== 1 || operands.length > 0) {
      throw new UsageError("-n and one of -p, -c, -f, -s and -b are needed");
    }
    const log = open(path);
    if (parent) print(log.parent);
    if (child) print(log.child);
    if (consistent) print(`${log.consistent}`);
    if (size) print(`${log.size}`);
    if (bitmap) writeOut(log.bitmap);
    return 0;
  },
});

const coalesce = suiteCommand("cbt-util", {
  name: "coalesce",
  summary: "Adds the changes that a log knows to the log behind it.",
  usage:
    "cbt-util coalesce: Coalesce contents of parent bitmap on to child bitmap\n\n" +
    "Options:\n\t-p Parent log file name\n\t-c Child log file name\n\t[-h help]\n",
  helpStatus: EINVAL,
  options: {
    parent: valued("p", "file", "the log whose changes are added", "file"),
    child: valued("c", "file", "the log that they are added to", "file"),
    h: help,
  },
  async run({ options, operands }) {
    const { parent, child } = options;
    if (parent === undefined || child === undefined || operands.length > 0)
      throw new UsageError("-p and -c are needed");
    const [from, into] = [open(parent), open(child)];
    merge(from, into);
    writeLog(child, into);
    return 0;
  },
});

const commands = [create, set, get, coalesce];

/** `cbt-util`. */
export const cbtUtil: Suite = {
  name: "cbt-util",
  summary: "Makes and reads logs of changed blocks.",
  manual: {
    details: [
      "Command lines, output and exit statuses are those of blktap's cbt-util, which storage managers call. A log is replaced " +
        "as a whole, so that a power cut leaves the old one or the new one.",
    ],
    examples: [
      {
        text: "Make a log, and see what a backup has to read",
        command: "cbt-util create -n disk.log -s 21474836480 && cbt-util get -b -n disk.log | xxd",
      },
    ],
    exitStatus: [
      ["0", "success"],
      ["22", "the command line is wrong"],
      ["other", "the errno value of what failed"],
    ],
    seeAlso: ["vhd-util", "td-util"],
  },
  commands,
  usage: `usage: cbt-util COMMAND [OPTIONS]\nCOMMAND := { ${commands.map((command) => command.name).join(" | ")} }`,
  usageTo: print,
  noCommandStatus: EINVAL,
  badCommandStatus: 0,
};
