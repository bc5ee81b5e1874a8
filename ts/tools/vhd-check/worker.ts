/** A worker thread: it has an engine and a port of its own, and looks at one image after the other. */

import { parentPort } from "node:worker_threads";
import { loadEngineModule } from "../../engine/load-node.ts";
import { isBlockDevice } from "../../host/files.ts";
import { serversOf } from "../../host/in-use.ts";
import { JobRunner } from "../../host/job-runner.ts";
import { portModule } from "../../tapdisk/port.ts";
import { explain, ToolError } from "../cli/failure.ts";
import { type News, orderSchema, type Request } from "./messages.ts";
import { checkReportSchema, type ImageReport, mendedSchema, type Result } from "./schema.ts";

/** What is wrong with an image, apart from notes. */
function isClean(images: readonly ImageReport[]): boolean {
  return images.every(({ errors, warnings, complete }) => errors + warnings === 0 && complete);
}

function resultOf(path: string, images: ImageReport[], mended: Partial<Result> = {}): Result {
  const done = mended.mended ?? false;
  const outcome = isClean(images) ? (done ? "mended" : "clean") : "left";
  return { path, outcome, mended: done, images, before: null, undo: null, error: null, ...mended };
}

/**
 * Looks at an image, and mends it if that is wanted.
 * @throws what kept it from being looked at
 */
export async function examine(
  runner: JobRunner,
  path: string,
  request: Request,
  tell: (news: News) => void,
): Promise<Result> {
  const now = Math.floor(Date.now() / 1000);
  const onProgress = (progress: { phase: string; done: number; total: number }) =>
    tell({ kind: "progress", ...progress });
  const { depth, chain, stats, ignore } = request;
  const check = async () => {
    const report = await runner.run({ job: "check", path, depth, chain, stats, ignore, now }, onProgress);
    // The original takes no locks.
    return checkReportSchema.parse(report).images.map((image) => ({
      ...image,
      inUse: image.inUse || serversOf(image.path).length > 0,
    }));
  };
  if (!request.repair) return resultOf(path, await check());
  const undo = request.undoFile ?? undoBeside(path);
  // Mending needs what the bitmaps say.
  const mend = { job: "mend", path, undo, depth: depth === "quick" ? "full" : depth, now };
  const { before, after, undo: written } = mendedSchema.parse(await runner.run(mend, onProgress));
  if (after === null) return resultOf(path, chain || stats ? await check() : [before]);
  const images = chain || stats ? await check() : [after];
  return resultOf(path, images, { mended: before.plan.length > 0, before, undo: written });
}

/** Where what is overwritten is saved when nothing is said. Folders of devices keep nothing when the power fails. */
function undoBeside(path: string): string {
  if (isBlockDevice(path)) {
    throw new ToolError(`${path} is a block device: --undo-file has to say where to save what is overwritten`);
  }
  return `${path}.undo`;
}

/** Does what the main thread says. */
export function work(): void {
  const port = parentPort;
  if (port === null) throw new Error("this is no worker thread");
  const runner = new JobRunner(loadEngineModule(), portModule().Port);
  const tell = (news: News) => port.postMessage(news);
  port.on("message", async (message: unknown) => {
    const order = orderSchema.parse(message);
    if (order.kind === "cancel") return runner.cancel();
    const { path, request } = order;
    try {
      tell({ kind: "result", result: await examine(runner, path, request, tell) });
    } catch (error) {
      const failed: Result = {
        path,
        outcome: "failed",
        mended: false,
        images: [],
        before: null,
        undo: null,
        error: explain(error),
      };
      tell({ kind: "result", result: failed });
    }
  });
}
