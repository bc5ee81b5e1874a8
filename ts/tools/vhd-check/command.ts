import { availableParallelism } from "node:os";
import { Option } from "commander";
import * as z from "zod";
import { integer } from "../cli/arguments.ts";
import { ToolError, UsageError } from "../cli/failure.ts";
import { interrupted, interruptible } from "../cli/interrupt.ts";
import { withJobs } from "../cli/jobs.ts";
import { print, printJson, say } from "../cli/output.ts";
import { createTool, type Statuses, type ToolCommand } from "../cli/program.ts";
import type { Request } from "./messages.ts";
import { Pool, type Watcher } from "./pool.ts";
import { codeSchema, outputSchema, type Result, undoneSchema } from "./schema.ts";
import { status, statusFor } from "./status.ts";
import { LiveTable } from "./table.ts";
import { imagesIn } from "./targets.ts";
import { printCodes, printResult } from "./text.ts";

const MAX_THREADS = 256;

/** Exit statuses of the command that are not those of results. */
export const checkStatuses: Statuses = { usage: status.usage, failure: () => status.failed };

const ignorable = ["primary-footer", "parent-uuid", "timestamps", "overlaps"] as const;

const givenSchema = z.object({
  paths: z.array(z.string()),
  quick: z.boolean(),
  data: z.boolean(),
  chain: z.boolean(),
  stats: z.boolean(),
  ignore: z.array(z.enum(ignorable)),
  repair: z.boolean(),
  dryRun: z.boolean(),
  undoFile: z.string().min(1).optional(),
  undo: z.string().min(1).optional(),
  notes: z.boolean(),
  json: z.boolean(),
  jobs: integer(1, MAX_THREADS).optional(),
  explain: z.union([z.literal(true), z.string()]).optional(),
});

type Given = z.infer<typeof givenSchema>;

/** The command line of `vhd-check`. */
export function vhdCheckCommand(): ToolCommand {
  const command = createTool(
    "vhd-check",
    "Finds what is wrong with VHD images, and mends what can be mended without loss.",
    {
      details: [
        "Looks at both copies of the footer, the header, the BAT, blktap's batmap, all sector bitmaps, parent locators and the " +
          "parents themselves, and goes on after what it finds. Every finding has a code, a place, what it means and what mends it.",
        "Nothing is changed without --repair. That does only what can't change what the disk reads, saves every byte that it " +
          "overwrites to an undo file first, and may be interrupted at any moment: started again, it goes on. Images that are in " +
          "use are not mended.",
        "A folder stands for all files in it and below that are called *.vhd. Several images are looked at at the same time.",
      ],
      examples: [
        { text: "Check an image", command: "vhd-check disk.vhd" },
        {
          text: "Check all images of a storage repository, with their parents",
          command: "vhd-check --chain /run/sr-mount/UUID",
        },
        {
          text: "See what could be mended, and mend it",
          command: "vhd-check --dry-run disk.vhd && vhd-check --repair disk.vhd",
        },
        { text: "Take that back", command: "vhd-check --undo disk.vhd.undo" },
        { text: "Ask what a finding means", command: "vhd-check --explain blocks-overlap" },
      ],
      exitStatus: [
        ["0", "nothing is wrong, apart from notes"],
        ["1", "something was mended"],
        ["4", "something is wrong and was not mended"],
        ["8", "an image could not be looked at, or mended"],
        ["16", "the command line is wrong"],
      ],
      sections: [
        {
          title: "JSON",
          paragraphs: [
            "--json prints one object: format, version, status (the exit status) and results. Its JSON Schema is installed as " +
              "share/tapvhd/vhd-check.schema.json.",
          ],
        },
      ],
      seeAlso: ["vhd-util", "tapdisk"],
    },
  );
  const collect = (value: string, earlier: string[]) => [...earlier, value];
  return command
    .argument("[paths...]", "images, and folders with images")
    .option("-q, --quick", "leave the bitmaps out", false)
    .option(
      "-d, --data",
      "look for data under clear bits of bitmaps as well: reads all blocks that are not full",
      false,
    )
    .option("-c, --chain", "check the parents of each image as well", false)
    .option("-s, --stats", "count the sectors of each image", false)
    .addOption(
      new Option("-i, --ignore <what>", "something that shall not be found; may be given several times")
        .choices(ignorable)
        .argParser((value, earlier: string[]) => collect(value, earlier))
        .default([], "nothing"),
    )
    .option("-r, --repair", "mend what can be mended without loss", false)
    .option("-n, --dry-run", "tell what --repair would do", false)
    .option(
      "--undo-file <file>",
      "where --repair saves what it overwrites (default: the image's name and .undo; needed for block devices)",
    )
    .option(
      "--undo <file>",
      "take back what --repair did, by its undo file; an argument names the image if it has moved",
    )
    .option("--notes", "show findings that are nothing but notes, too", false)
    .option("--json", "print the result as JSON", false)
    .option("-j, --jobs <N>", "images to look at at the same time (default: the number of processors)")
    .option("--explain [code]", "explain a kind of finding, or all")
    .action((paths: unknown) => run(command.parseArguments(givenSchema, { paths })));
}

async function run(given: Given): Promise<void> {
  if (given.explain !== undefined) return explain(given.explain, given.json);
  if (given.undo !== undefined) return undo(given.undo, given.paths);
  if (given.quick && given.data) throw new UsageError("--quick and --data contradict each other");
  if (given.repair && given.dryRun) throw new UsageError("--repair and --dry-run contradict each other");
  if (given.paths.length === 0) throw new UsageError("which images?");
  const images = imagesIn(given.paths);
  if (images.length === 0) throw new ToolError("there is no image in these folders");
  if (given.undoFile !== undefined && (images.length > 1 || !given.repair)) {
    throw new UsageError("--undo-file is for --repair of a single image");
  }
  const results = await checkAll(images, given);
  const stopped = interrupted();
  if (given.json) {
    printJson(outputSchema.parse({ format: "vhd-check", version: 1, status: statusFor(results), results }));
  }
  process.exitCode = stopped ?? statusFor(results);
}

function requestOf({ quick, data, chain, stats, ignore, repair, undoFile }: Given): Request {
  return {
    depth: quick ? "quick" : data ? "data" : "full",
    chain,
    stats,
    ignore: {
      primaryFooter: ignore.includes("primary-footer"),
      parentUuid: ignore.includes("parent-uuid"),
      timestamps: ignore.includes("timestamps"),
      overlaps: ignore.includes("overlaps"),
    },
    repair,
    ...(undoFile === undefined ? {} : { undoFile }),
  };
}

/** Looks at all images; yields the results in the order of the images. */
async function checkAll(images: readonly string[], given: Given): Promise<Result[]> {
  const pool = new Pool();
  const live = process.stderr.isTTY && !given.json;
  const table = live ? new LiveTable(images.length) : undefined;
  const options = { notes: given.notes, dryRun: given.dryRun };
  const printed = new Set<string>();
  const show = (result: Result) => {
    if (given.json) return;
    if (result.outcome === "failed") say(`vhd-check: ${result.error}`);
    else printResult(result, options);
    printed.add(result.path);
  };
  // Without a table each result is told as soon as it is there.
  const plain: Watcher = { started: () => {}, progress: () => {}, finished: show };
  const threads = given.jobs ?? availableParallelism();
  const work = () => pool.run(images, requestOf(given), threads, table ?? plain);
  const results = await interruptible(() => pool.cancel(), work).finally(() => table?.close());
  const sorted = images.flatMap((path) => results.filter((result) => result.path === path));
  for (const result of sorted) if (!printed.has(result.path)) show(result);
  return sorted;
}

async function explain(code: string | true, json: boolean): Promise<void> {
  const codes = await withJobs({ progress: "none" }, (jobs) => jobs.run({ job: "findings" }, z.array(codeSchema)));
  const chosen = code === true ? codes : codes.filter((one) => one.code === code);
  if (chosen.length === 0) throw new UsageError(`there is no kind of finding '${code}'`);
  if (json) printJson(chosen);
  else printCodes(chosen);
}

async function undo(file: string, paths: readonly string[]): Promise<void> {
  const [path, ...others] = paths;
  if (others.length > 0) throw new UsageError("--undo is for a single image");
  const job = { job: "undo", undo: file, ...(path === undefined ? {} : { path }) };
  const undone = await withJobs({ progress: "none" }, (jobs) => jobs.run(job, undoneSchema));
  print(`${undone.path}: ${undone.changes === 1 ? "1 change was" : `${undone.changes} changes were`} taken back`);
}
