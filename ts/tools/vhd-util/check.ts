import { statSync } from "node:fs";
import { constants } from "node:os";
import { basename } from "node:path";
import * as z from "zod";
import { errnoOf } from "../../tapdisk/errors.ts";
import { UsageError } from "../cli/failure.ts";
import type { Jobs } from "../cli/jobs.ts";
import { print, printable, printJson, say } from "../cli/output.ts";
import { suiteCommand } from "../cli/suite.ts";
import { announcing } from "./failing.ts";
import { flag, help, json, name } from "./options.ts";
import { printHeaders } from "./read.ts";

const { EINVAL } = constants.errno;

const unsigned = z.int().nonnegative();

/** What of a check's report is told here; `vhd-check` tells all of it. */
const reportSchema = z.object({
  images: z.array(
    z.object({
      path: z.string(),
      disk: z.object({ type: z.string() }).nullable(),
      errors: unsigned,
      findings: z.array(z.looseObject({ severity: z.string(), message: z.string() })),
      stats: z
        .object({ allocated: unsigned, written: unsigned, notInParent: unsigned, notInAncestors: unsigned })
        .nullable(),
      original: z.string().nullable(),
    }),
  ),
});

type ImageReport = z.infer<typeof reportSchema>["images"][number];

/** A number of sectors, and how many of a hundred others they are. */
function share(sectors: number, all: number): string {
  const percent = all === 0 ? 0 : (100 * sectors) / all;
  return `0x${sectors.toString(16)} (${percent.toFixed(2)}%)`;
}

function printStats(images: readonly ImageReport[]): void {
  for (const [index, { path, stats }] of images.toReversed().entries()) {
    if (stats === null) continue;
    const { allocated, written, notInParent, notInAncestors } = stats;
    const parts = [
      `${basename(path)}: secs allocated: 0x${allocated.toString(16)}`,
      `secs written: ${share(written, allocated)}`,
      ...(index === 0
        ? []
        : [
            `secs not in parent: ${share(notInParent, written)}`,
            `secs not in ancestors: ${share(notInAncestors, written)}`,
          ]),
    ];
    print(parts.join(" "));
  }
}

/** Says of an image what the original says, or what it should. Yields the exit status. */
async function judge(jobs: Jobs, report: ImageReport, withStats: boolean): Promise<number> {
  const { path, disk, errors, findings, original } = report;
  if (original !== null || errors > 0) {
    const first = findings.find(({ severity }) => severity === "error");
    print(printable(original ?? first?.message ?? "the image is damaged"));
    print(`${path} appears invalid; dumping metadata`);
    await printHeaders(jobs, path, false);
    for (const { severity, message } of findings) say(printable(`${path}: ${severity}: ${message}`));
    say(`(vhd-check '${path}' tells more, and what mends it)`);
    return EINVAL;
  }
  if (!withStats && disk !== null && disk.type !== "fixed") print(`${path} is valid`);
  return 0;
}

/** `vhd-util check`. */
export const check = suiteCommand("vhd-util", {
  name: "check",
  summary: "Checks an image, in few words; vhd-check tells more, and mends.",
  usage:
    "options: -n <file> [-i ignore missing primary footers] [-I ignore parent uuids] [-t ignore timestamps] " +
    "[-B do not check BAT for overlapping (precludes -s, -b)] [-p check parents] [-b check bitmaps] [-s stats] [-h help]",
  options: {
    name,
    ignoreFooter: flag("i", "don't mind if the footer at the end is missing"),
    ignoreUuid: flag("I", "don't mind if parents are others than those that images name"),
    ignoreTime: flag("t", "don't mind time stamps"),
    ignoreOverlaps: flag("B", "don't mind blocks that overlap; excludes -s and -b"),
    parents: flag("p", "check all parents too"),
    data: flag("b", "check that there are no data where bitmaps are clear"),
    stats: flag("s", "count sectors"),
    json,
    h: help,
  },
  manual: { examples: [{ text: "Check an image with its parents", command: "vhd-util check -p -n disk.vhd" }] },
  async run({ options, operands }, jobs) {
    const { name: path } = options;
    if (path === undefined || operands.length > 0) throw new UsageError("-n is missing");
    const stats = options.stats === true;
    if (options.ignoreOverlaps && (stats || options.data)) throw new UsageError("-B excludes -s and -b");
    const unusable = whyUnusable(path);
    if (unusable !== undefined) {
      print(unusable.text);
      return unusable.errno;
    }
    const job = {
      job: "check",
      path,
      depth: options.data ? "data" : "quick",
      chain: options.parents === true,
      stats,
      ignore: {
        primaryFooter: options.ignoreFooter === true,
        parentUuid: options.ignoreUuid === true,
        timestamps: options.ignoreTime === true,
        overlaps: options.ignoreOverlaps === true,
      },
      now: Math.floor(Date.now() / 1000),
    };
    const { images } = await announcing(
      () => `error opening ${path}`,
      () => jobs.run(job, reportSchema),
    );
    if (options.json) {
      printJson({ valid: images.every(({ original, errors }) => original === null && errors === 0), images });
    }
    for (const [index, image] of images.entries()) {
      const status = options.json
        ? image.original === null && image.errors === 0
          ? 0
          : EINVAL
        : await judge(jobs, image, stats);
      if (status !== 0) {
        if (index > 0 && !options.json) print(`error checking parents: -${status}`);
        return status;
      }
    }
    if (stats && !options.json) printStats(images);
    return 0;
  },
});

/** What the original says of a path that leads to no file that could be an image. */
function whyUnusable(path: string): { text: string; errno: number } | undefined {
  try {
    const status = statSync(path);
    if (status.isFile() || status.isBlockDevice()) return undefined;
    return { text: `${path} is not a regular file or block device`, errno: EINVAL };
  } catch (error) {
    const errno = errnoOf(error);
    return { text: `cannot stat ${path}: ${errno}`, errno };
  }
}
