/**
 * Entry of the worker thread that runs the data plane of one virtual disk: everything between its front ends and its
 * files. It blocks in the port's turn, so nothing that needs the event loop of Node works here: no timers, no sockets, no
 * output. Messages to it are read after a wake-up.
 */

import { type MessagePort, parentPort, receiveMessageOnPort } from "node:worker_threads";
import { loadEngineModule } from "../engine/load-node.ts";
import { Disk } from "./disk.ts";
import { messageOf } from "./errors.ts";
import { controlSchema, openSchema, type Report } from "./messages.ts";
import { portModule } from "./port.ts";

const main = parentPort;
if (main === null) {
  throw new Error("worker.ts has to be started as a worker thread");
}

function report(message: Report): void {
  main?.postMessage(message);
}

/** Opens the disk, serves it, closes it. */
function work(main: MessagePort, first: unknown): void {
  try {
    const { disk: options, engine } = openSchema.parse(first);
    const disk = new Disk(options, loadEngineModule(engine), portModule().Port, report);
    disk.open();
    disk.serve(() => {
      const received = receiveMessageOnPort(main);
      return received === undefined ? undefined : controlSchema.parse(received.message);
    });
    disk.close();
  } catch (error) {
    report({ kind: "failed", message: messageOf(error) });
  }
}

// It may be a while until it comes: the thread is started before anybody knows which disk it is for.
portModule();
main.once("message", (first) => work(main, first));
