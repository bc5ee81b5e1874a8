/** The new image of a merge sideways: it is made under another name, and gets its own when everything is in it. */

import { randomUUID } from "node:crypto";
import { existsSync, renameSync, rmSync } from "node:fs";
import * as z from "zod";
import { makeRawFile, syncFolder } from "../../host/files.ts";
import { ToolError } from "../cli/failure.ts";
import type { Jobs } from "../cli/jobs.ts";
import type { Format } from "./command.ts";
import type { Member } from "./family.ts";

const ENDING = ".partial";

/** What an image that is being made is called. */
export function partialPath(output: string): string {
  return output + ENDING;
}

/** Makes an empty image of the size of a disk, a child of `parent` if there is one; or finds what an earlier run left. */
export async function prepareOutput(
  output: string,
  format: Format,
  size: number,
  parent: Member | undefined,
  resume: { readonly record: string } | undefined,
  jobs: Jobs,
): Promise<{ readonly path: string; readonly goesOn: boolean }> {
  const path = partialPath(output);
  if (existsSync(output)) throw new ToolError(`${output} exists already`);
  if (existsSync(path)) {
    if (resume === undefined) {
      throw new ToolError(`${path} is left of an earlier run: go on with --resume, or remove it`);
    }
    if (existsSync(resume.record)) return { path, goesOn: true };
    rmSync(path);
  }
  const now = Math.floor(Date.now() / 1000);
  if (format === "raw") {
    makeRawFile(path, size);
  } else if (parent === undefined) {
    await jobs.run({ job: "create", path, type: format, size, uuid: randomUUID(), now }, z.unknown());
  } else {
    const { path: parentPath, driver } = parent;
    const link = { path: parentPath, driver };
    await jobs.run(
      { job: "snapshot", path, parent: link, size, keepEmpty: true, uuid: randomUUID(), now },
      z.unknown(),
    );
  }
  return { path, goesOn: false };
}

/** Gives the finished image its name, durably. */
export function finishOutput(output: string): void {
  if (existsSync(output)) throw new ToolError(`${output} exists already; the new image is ${partialPath(output)}`);
  renameSync(partialPath(output), output);
  syncFolder(output);
}
