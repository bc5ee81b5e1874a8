/** Merging: who is concerned, the merge itself, and what comes after it. */

import { existsSync, realpathSync, rmSync, statSync } from "node:fs";
import { dirname } from "node:path";
import * as z from "zod";
import { HostFiles, isBlockDevice } from "../../host/files.ts";
import { serversOf } from "../../host/in-use.ts";
import { portModule } from "../../tapdisk/port.ts";
import { ToolError } from "../cli/failure.ts";
import { type Jobs, withJobs } from "../cli/jobs.ts";
import { say } from "../cli/output.ts";
import { styleFor } from "../cli/progress.ts";
import type { Request } from "./command.ts";
import { tell } from "./events.ts";
import { type Family, familyOf, type Member } from "./family.ts";
import { finishOutput, partialPath, prepareOutput } from "./output.ts";
import { writeRate } from "./rate.ts";

/** The ending of a record's name, behind the name of the image that the merge writes. */
const RECORD_ENDING = ".coalesce";

const count = z.int().nonnegative();

const coalescedSchema = z.object({
  target: z.string(),
  sectors: count,
  zeroed: count,
  resumedAt: count,
  estimate: z.object({ bytes: count, zeroBytes: count, blocks: count, space: count, free: count.nullable() }),
});

/** `RecordSpec` in `crates/vhd/src/jobs/coalesce/progress.rs`. */
interface RecordSpec {
  readonly path: string;
  readonly resume: boolean;
  readonly now: number;
  readonly interval: number;
}

type Coalesced = z.infer<typeof coalescedSchema>;

/** Does what was asked for. */
export async function coalesce(request: Request): Promise<void> {
  await withJobs({ progress: styleFor(request.json) }, async (jobs) => {
    const family = await familyOf(request.child, jobs);
    const level = targetLevel(request, family);
    refuseServed(family.chain.slice(0, level));
    if (request.output === undefined) await inPlace(request, family, level, jobs);
    else await sideways(request, request.output, family, level, jobs);
  });
}

/** The index of the target in the chain; with an output, of the image that will be its parent, or the chain's length. */
function targetLevel({ child, into, output }: Request, { chain }: Family): number {
  if (into === undefined) {
    if (output !== undefined) return chain.length;
    if (chain.length === 1) throw new ToolError(`${child} has no parent to be merged into`);
    return 1;
  }
  const real = realPathOf(into);
  const level = chain.findIndex(({ realPath }) => realPath === real);
  if (level > 0) return level;
  const ancestors = chain.slice(1).map(({ path }) => path);
  throw new ToolError(`${into} is no ancestor of ${child}; these are: ${ancestors.join(", ") || "none"}`);
}

function realPathOf(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    throw new ToolError(`${path} does not exist`);
  }
}

/** What is copied must not change meanwhile; locks keep our own tapdisk from that, but not the original. */
function refuseServed(copied: readonly Member[]): void {
  for (const { path } of copied) {
    const [server] = serversOf(path);
    if (server !== undefined) throw new ToolError(`${path} is in use by tapdisk, process ${server}`);
  }
}

async function inPlace(request: Request, family: Family, level: number, jobs: Jobs): Promise<void> {
  const target = family.chain[level];
  if (target === undefined) throw new ToolError("the target is not in the chain");
  const others = family.children.filter(({ parent }) => parent > 0 && parent <= level).map(({ path }) => path);
  if (others.length > 0 && !request.force) {
    throw new ToolError(`${others.join(", ")}: other children of what is merged, which would read differently`);
  }
  if (request.remove) {
    const device = family.chain.slice(0, level).find(({ path }) => isBlockDevice(path));
    if (device !== undefined) throw new ToolError(`${device.path} is a block device, which --remove can't remove`);
  }
  const job = { job: "coalesce", path: request.child, into: target.path, sparse: request.sparse };
  if (request.dryRun) {
    return tellEstimate(await jobs.run({ ...job, dryRun: true }, coalescedSchema), target.path, request);
  }
  const record = statSync(target.path).isFile() ? { record: recordOf(target.realPath, request) } : {};
  await merge({ ...job, ...record }, target.path, request, jobs);
  const grandchildren = family.children.filter(({ parent }) => parent === 0).map(({ path }) => path);
  if (request.reparent) await reparent(grandchildren, target, request, jobs);
  if (request.remove) await remove(family, level, request, jobs);
}

async function sideways(request: Request, output: string, family: Family, level: number, jobs: Jobs): Promise<void> {
  const { size } = family.chain[0];
  const base = family.chain[level];
  const format = request.format ?? "dynamic";
  const driver = format === "raw" ? "aio" : "vhd";
  const job = {
    job: "coalesce",
    path: request.child,
    sparse: request.sparse,
    ...(base === undefined ? {} : { into: base.path }),
  };
  if (request.dryRun) {
    const estimated = await jobs.run({ ...job, dryRun: true, output: { path: output, driver } }, coalescedSchema);
    return tellEstimate(estimated, output, request);
  }
  const record = recordOf(partialPath(output), request);
  const resume = request.resume ? { record: record.path } : undefined;
  const { path, goesOn } = await prepareOutput(output, format, size, base, resume, jobs);
  const spec = { ...job, output: { path, driver }, record: { ...record, resume: goesOn } };
  try {
    await merge(spec, output, request, jobs, () => finishOutput(output));
  } catch (error) {
    // Without a record nothing of it is of use to another run.
    if (!goesOn && !existsSync(output) && !existsSync(record.path)) rmSync(path, { force: true });
    throw error;
  }
}

/** Where the record of a merge into a target is kept, and when it is good. */
function recordOf(target: string, { resume, recordEvery }: Request): RecordSpec {
  return { path: target + RECORD_ENDING, resume, now: Math.floor(Date.now() / 1000), interval: recordEvery };
}

async function merge(
  job: { readonly job: string } & Readonly<Record<string, unknown>>,
  target: string,
  { resume, json }: Request,
  jobs: Jobs,
  finish = () => {},
): Promise<void> {
  const start = performance.now();
  const { sectors, zeroed, resumedAt } = await jobs.run(job, coalescedSchema);
  finish();
  if (resume && resumedAt === 0) say("there was no record of an earlier run of this merge: everything was copied");
  const seconds = (performance.now() - start) / 1000;
  tell({ event: "merged", target, sectors, zeroed, resumedAt, seconds }, json);
}

function tellEstimate({ estimate }: Coalesced, target: string, { json }: Request): void {
  const rate = isBlockDevice(target) ? undefined : writeRate(dirname(target));
  const seconds = rate === undefined ? null : estimate.bytes / rate;
  tell({ event: "estimate", target, ...estimate, seconds }, json);
}

/** Makes the target the parent of images whose parent has been merged into it. */
async function reparent(paths: readonly string[], target: Member, { json }: Request, jobs: Jobs): Promise<void> {
  const parent = { path: target.path, driver: target.driver };
  for (const path of paths) {
    await jobs.run({ job: "modify", path, parent }, z.unknown());
    tell({ event: "reparented", path, parent: target.path }, json);
  }
}

/** Removes images that were merged, the child first, as long as they have no children. */
async function remove(family: Family, level: number, { child, json }: Request, jobs: Jobs): Promise<void> {
  const merged = family.chain.slice(0, level);
  const { children } = await familyOf(child, jobs);
  for (const [index, { path }] of merged.entries()) {
    const still = children.filter(({ parent }) => parent === index).map((other) => other.path);
    if (still.length > 0) throw new ToolError(`${path} is not removed: it is the parent of ${still.join(", ")}`);
    removeUnused(path);
    tell({ event: "removed", path }, json);
  }
}

/** Removes an image that nobody has open. */
function removeUnused(path: string): void {
  const { Port } = portModule();
  const port = new Port({ backend: "threads" });
  const files = new HostFiles(port, false);
  try {
    files.open(path, "write");
    const answer = files.fulfil({ remove: { path } });
    if ("errno" in answer) throw new ToolError(`${path} can't be removed`);
  } finally {
    files.closeAll();
    port.close();
  }
}
