/** The command line of `vhd-coalesce`; what it does is in the other files of this folder. */

import { resolve } from "node:path";
import { Option } from "commander";
import * as z from "zod";
import { size } from "../cli/arguments.ts";
import { UsageError } from "../cli/failure.ts";
import { createTool, type ToolCommand } from "../cli/program.ts";
import { coalesce } from "./coalesce.ts";
import { printSchema } from "./events.ts";

const formats = ["dynamic", "fixed", "raw"] as const;

/** What a new image is. */
export type Format = (typeof formats)[number];

const path = z
  .string()
  .min(1, "a path is missing")
  .transform((given) => resolve(given));

const coalesceArguments = z
  .object({
    child: path,
    into: path.optional(),
    output: path.optional(),
    format: z.enum(formats).optional(),
    sparse: z.boolean(),
    dryRun: z.boolean(),
    resume: z.boolean(),
    recordEvery: size(512, Number.MAX_SAFE_INTEGER),
    reparent: z.boolean(),
    remove: z.boolean(),
    force: z.boolean(),
    json: z.boolean(),
  })
  .refine(({ output, format }) => output !== undefined || format === undefined, {
    path: ["format"],
    error: "it is for a new image: --output is missing",
  })
  .refine(
    ({ output, into, format }) => output === undefined || into === undefined || (format ?? "dynamic") === "dynamic",
    {
      path: ["format"],
      error: "only a dynamic image can have a parent (--into)",
    },
  )
  .refine(({ output, reparent }) => output === undefined || !reparent, {
    path: ["reparent"],
    error: "a new image gets no children: it can't go with --output",
  })
  .refine(({ output, remove }) => output === undefined || !remove, {
    path: ["remove"],
    error: "the child is still needed by its own children: it can't go with --output",
  });

/** What was asked for. */
export type Request = z.infer<typeof coalesceArguments>;

/** The command line of `vhd-coalesce`. */
export function coalesceCommand(): ToolCommand {
  const command = createTool("vhd-coalesce", "Merges a VHD into its parent, or a range of a chain into one image.", {
    details: [
      "What the child has of its own is copied into its parent, which then reads by itself as the child does. With --into the " +
        "images between are merged as well: for each sector the topmost image that has it is copied once. The child still " +
        "reads the same, at every moment, also while tapdisk serves a disk through it. Parents can be dynamic, differencing " +
        "or fixed VHDs, raw files and block devices.",
      "Other children of the target, or of an image between, would read differently afterwards. They are looked for in the " +
        "folders of the chain, and the merge is refused if there are any.",
      "A merge that was interrupted, killed or cut off by a power failure has done no harm, and is ended by starting it again; " +
        "with --resume it goes on where its record, a file with the ending .coalesce beside the target, says that everything " +
        "is on the disk. That is right as long as nobody else writes to the target in between.",
    ],
    examples: [
      { text: "Merge a snapshot into its parent", command: "vhd-coalesce snapshot.vhd" },
      { text: "Say what that would take", command: "vhd-coalesce snapshot.vhd --dry-run" },
      {
        text: "Merge everything between into the root, move its children over, and remove what is not needed any more",
        command: "vhd-coalesce snapshot3.vhd --into base.vhd --reparent --remove",
      },
      {
        text: "Copy a whole chain into one raw image",
        command: "vhd-coalesce leaf.vhd --output disk.img --format raw --sparse",
      },
    ],
    exitStatus: [
      ["0", "everything that was asked for is done, and durable"],
      ["1", "it was refused, or something failed; the child reads as before"],
      ["2", "the command line is wrong"],
      ["130", "it was interrupted: --resume goes on (143 after SIGTERM)"],
    ],
    seeAlso: ["tapdisk", "vhd-util", "vhd-check"],
  });
  return command
    .argument("[child]", "the VHD to merge")
    .option(
      "--into <ancestor>",
      "merge into this ancestor instead of the parent; with --output, what the new image has as its parent",
    )
    .option("-o, --output <file>", "leave the chain alone and copy it into a new image")
    .addOption(new Option("--format <format>", "what the new image is").choices(formats))
    .option("-s, --sparse", "don't copy zeros, and give back the space that they take", false)
    .option("-n, --dry-run", "only say what it would take", false)
    .option("--resume", "go on where an earlier run was cut off", false)
    .option("--record-every <size>", "bytes to copy before the record is brought up to date", "1G")
    .option("--reparent", "make the target the parent of the child's own children", false)
    .option("--remove", "remove the child, and the images between, when nobody has them as parents", false)
    .option("--force", "merge though other children of the target will read differently", false)
    .option("--json", "print events as JSON, one a line", false)
    .option("--json-schema", "print the JSON Schema of these events", false)
    .action((child: unknown) => {
      if (command.opts().jsonSchema === true) return printSchema();
      if (child === undefined) throw new UsageError("the VHD to merge is missing");
      return coalesce(command.parseArguments(coalesceArguments, { child }));
    });
}
