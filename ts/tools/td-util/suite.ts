import { statSync } from "node:fs";
import { constants } from "node:os";
import { makeRawFile } from "../../host/files.ts";
import { errnoOf } from "../../tapdisk/errors.ts";
import { errnoValue, UsageError } from "../cli/failure.ts";
import { parseNumber } from "../cli/getopt.ts";
import { print, say } from "../cli/output.ts";
import type { ReferenceArgument } from "../cli/reference/model.ts";
import { type Suite, suiteCommand } from "../cli/suite.ts";
import { createImage } from "../vhd-util/create.ts";
import { describeChain, type ImageDescription } from "../vhd-util/image.ts";
import { flag, help, valued } from "../vhd-util/options.ts";
import { chainDepth } from "../vhd-util/query.ts";
import { setField } from "../vhd-util/set.ts";
import { createChild } from "../vhd-util/snapshot.ts";

const { EINVAL } = constants.errno;
const MIB = 2 ** 20;
const types = ["vhd", "aio"] as const;
type DiskType = (typeof types)[number];

const type: ReferenceArgument = {
  name: "type",
  kind: types,
  description: "vhd, or aio for raw images",
  required: true,
  variadic: false,
};

function operand(name: string, description: string, kind: ReferenceArgument["kind"] = "file"): ReferenceArgument {
  return { name, kind, description, required: true, variadic: false };
}

/** The type, and as many operands as there must be behind it. */
function take<N extends number>(operands: readonly string[], count: N): { type: DiskType; rest: readonly string[] } {
  const [first, ...rest] = operands;
  const known = types.find((one) => one === first);
  if (known === undefined) throw new UsageError(`the type is one of ${types.join(", ")}, not '${first ?? ""}'`);
  if (rest.length !== count) throw new UsageError(`${count} operands are expected behind the type`);
  return { type: known, rest };
}

const create = suiteCommand("td-util", {
  name: "create",
  summary: "Makes a new, empty image.",
  usage: "usage: td-util create TYPE [-h help] [-r reserve] [-b file_is_fixed_size] <SIZE(MB)> <FILENAME>",
  usageTo: "stderr",
  helpStatus: EINVAL,
  options: {
    reserve: flag("r", "reserve all of its space; raw images are only made so"),
    fixedSize: flag("b", "the file has its size already; taken and not needed"),
    h: help,
  },
  operands: [type, operand("size", "MiB", "text"), operand("file", "the new image")],
  async run({ options, operands }, jobs) {
    const { type: kind, rest } = take(operands, 2);
    const [size = "", path = ""] = rest;
    const mebibytes = parseNumber(size, "the size");
    const fixed = options.reserve === true;
    if (kind === "vhd") return await createImage(jobs, { path, size: mebibytes, maxSize: undefined, fixed });
    if (!fixed) {
      say(`Cannot create sparse ${kind} image`);
      return EINVAL;
    }
    // New space reads as zeros. An existing file is not taken, as nowhere here.
    makeRawFile(path, mebibytes * MIB);
    return 0;
  },
});

const snapshot = suiteCommand("td-util", {
  name: "snapshot",
  summary: "Makes a child of an image, in which the disk goes on.",
  usage:
    "usage: td-util snapshot TYPE [-h help] [-m parent_raw] [-b file_is_fixed_size] [-l snapshot depth limit] " +
    "<FILENAME> <BACKING_FILENAME>",
  usageTo: "stderr",
  options: {
    raw: flag("m", "the parent is a raw image"),
    fixedSize: flag("b", "the file has its size already; taken and not needed"),
    limit: valued("l", "N", "fail if the parent's chain has that many images already"),
    h: help,
  },
  operands: [type, operand("file", "the new child"), operand("parent", "its parent")],
  async run({ options, operands }, jobs) {
    const { type: kind, rest } = take(operands, 2);
    const [path = "", parent = ""] = rest;
    if (kind !== "vhd") {
      say(`Cannot create snapshot of ${kind} image type`);
      return EINVAL;
    }
    try {
      statSync(parent);
    } catch (error) {
      say(`File ${parent} not found`);
      return errnoOf(error);
    }
    const limit = options.limit === undefined ? 0 : parseNumber(options.limit, "-l");
    return await createChild(jobs, {
      path,
      parent,
      rawParent: options.raw === true,
      keepEmpty: false,
      maxSize: undefined,
      depthLimit: limit === 0 ? undefined : limit,
    });
  },
});

const query = suiteCommand("td-util", {
  name: "query",
  summary: "Tells what an image is, a line for each question, in a fixed order.",
  usage:
    "usage: td-util query TYPE [-h help] [-v virtsize] [-p parent] [-f fields] " +
    "[-b don't trust the footer, use the back-up one instead] <FILENAME>",
  usageTo: "stderr",
  options: {
    size: flag("v", "the virtual size in MiB"),
    parent: flag("p", "the path of the parent"),
    hidden: flag("f", "the hidden flag"),
    depth: flag("d", "images in the chain"),
    backup: flag("b", "use the copy of the footer at the start"),
    h: help,
  },
  operands: [type, operand("file", "the image")],
  async run({ options, operands }, jobs) {
    const { type: kind, rest } = take(operands, 1);
    const [path = ""] = rest;
    if (kind === "aio") {
      if (options.size) print(`${Math.floor(Number((await open(path, "aio")).size) / MIB)}`);
      if (options.parent) print(`${path} has no parent`);
      if (options.hidden) print("hidden: 0");
      return 0;
    }
    const image = await open(path, "vhd");
    if (image.problem !== null) {
      print(`failed opening ${path}: -${image.problem.errno}`);
      say(`td-util query: ${image.problem.message}`);
      return image.problem.errno;
    }
    let status = 0;
    if (options.size) print(`${image.size >> 20n}`);
    if (options.parent && image.type !== "differencing") print(`${path} has no parent`);
    else if (options.parent && image.parent !== null) print(image.parent);
    else if (options.parent) {
      status = image.parentProblem?.errno ?? EINVAL;
      print(`failed getting parent: -${status}`);
      say(`td-util query: ${image.parentProblem?.message}`);
    }
    if (options.hidden) print(`hidden: ${image.footer?.hidden ?? 0}`);
    if (options.depth) {
      const depth = chainDepth(await describeChain(jobs, path, { parents: true, backup: options.backup === true }));
      print(depth === undefined ? `error checking chain depth: -${EINVAL}` : `chain depth: ${depth}`);
      if (depth === undefined) status ||= EINVAL;
    }
    return status;

    async function open(file: string, driver: DiskType): Promise<ImageDescription> {
      try {
        const how = { driver, parent: options.parent === true, backup: options.backup === true };
        return (await describeChain(jobs, file, how))[0] as ImageDescription;
      } catch (error) {
        print(`failed opening ${file}: ${driver === "aio" ? "" : "-"}${errnoValue(error)}`);
        throw error;
      }
    }
  },
});

const set = suiteCommand("td-util", {
  name: "set",
  summary: "Sets the hidden flag of an image.",
  usage: "usage: td-util set TYPE [-h help] <FILENAME> <FIELD> <VALUE>\nFIELD := { hidden }",
  usageTo: "stderr",
  helpStatus: EINVAL,
  options: { h: help },
  operands: [
    type,
    operand("file", "the image"),
    operand("field", "hidden", ["hidden"]),
    operand("value", "0 or 1", "text"),
  ],
  async run({ operands }, jobs) {
    const { type: kind, rest } = take(operands, 3);
    const [path = "", field = "", value = ""] = rest;
    if (kind !== "vhd") {
      say(`Cannot set fields of ${kind} images`);
      return EINVAL;
    }
    if (field !== "hidden") {
      say(`Invalid field ${field}`);
      throw new UsageError("the field is hidden");
    }
    return await setField(jobs, path, field, value);
  },
});

/** `td-util`. */
export const tdUtil: Suite = {
  name: "td-util",
  summary: "Makes, describes and marks images of the types that tapdisk serves.",
  manual: {
    details: ["Command lines, output and exit statuses are those of blktap's td-util, which storage managers call."],
    examples: [
      { text: "Make a disk of 20 GiB", command: "td-util create vhd 20480 disk.vhd" },
      { text: "Its size, parent and hidden flag", command: "td-util query vhd -vpf disk.vhd" },
    ],
    exitStatus: [
      ["0", "success"],
      ["22", "the command line is wrong, or the image can't be used"],
      ["255", "there is no such command or type"],
      ["other", "the errno value of what failed"],
    ],
    seeAlso: ["vhd-util", "cbt-util"],
  },
  commands: [create, snapshot, query, set],
  usage:
    "Tapdisk Utilities: v1.0.0\nusage: td-util COMMAND [TYPE] [OPTIONS]\n" +
    "COMMAND := { create | snapshot | query | set }\nTYPE := { vhd | aio }",
  usageTo: say,
  noCommandStatus: 255,
  badCommandStatus: 255,
};
